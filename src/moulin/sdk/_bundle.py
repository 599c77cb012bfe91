"""Packs a folder into a bundle: the same files always give the same bytes, so that they are sent once.

It decides what belongs to it (`.moulinignore`, else `.gitignore`, in every folder of it) and how much
that may be. Times and owners are not part of it; whether a file can be run is.
"""

import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final

from pathspec import GitIgnoreSpec

from moulin.domain.errors import InvalidRequest, NotFound

FILES_MAX: Final = 50_000
BYTES_MAX: Final = 2 * 10**9
PACKED_BYTES_MAX: Final = 500_000_000
IGNORED: Final = (".git/", ".moulin/", "__pycache__/", ".venv/")
OWN_RULES: Final = ".moulinignore"
GIT_RULES: Final = ".gitignore"
# 1980: the earliest that every archive can hold.
_TIME_S: Final = 315_532_800
_LEVEL: Final = 6
_PIECE_BYTES: Final = 1 << 20

Rules = tuple[str, GitIgnoreSpec]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A packed folder: an open file, its SHA-256 in hexadecimal, and how much is in it."""

    stream: BinaryIO
    sha256: str
    size_bytes: int
    files: int
    files_bytes: int


@contextmanager
def packed(folder: Path) -> Iterator[Bundle]:
    """Pack a folder into a file that is gone afterwards.

    Raises `NotFound` when it is no folder, `InvalidRequest` when it holds too much, cannot be read,
    or links to what is outside of it.

    Cost:   one walk and one pass over the bytes; memory for the names.
    """
    if not folder.is_dir():
        raise NotFound(f"send {folder}: it is no folder", hint="correct `workdir`")
    try:
        with tempfile.TemporaryFile() as stream:
            count, total = _pack(folder.resolve(), stream)
            size_bytes = stream.tell()
            if size_bytes > PACKED_BYTES_MAX:
                raise _too_much(folder, f"it is {size_bytes:,} bytes packed")
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            yield Bundle(
                stream=stream,
                sha256=digest,
                size_bytes=size_bytes,
                files=count,
                files_bytes=total,
            )
    except OSError as cause:
        raise InvalidRequest(
            f"pack {cause.filename or folder}: {cause.strerror}",
            hint=f"make it readable, or name it in {OWN_RULES}",
        ) from cause


def members(folder: Path) -> Iterator[str]:
    """Yield what belongs to a folder's bundle, relative to it, a folder before what is in it, by name.

    Rules nearer to a file win, as git's do; a folder that is left out is not looked into.
    """
    pending: list[tuple[str, tuple[Rules, ...]]] = [
        ("", (("", GitIgnoreSpec.from_lines(IGNORED)),))
    ]
    while pending:
        place, rules = pending.pop()
        if place:
            yield place
        here = folder / place
        rules += _rules_of(here, place)
        inner = []
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            path = f"{place}/{entry.name}" if place else entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if _is_left_out(path, rules, is_folder=is_folder):
                continue
            if is_folder:
                inner.append((path, rules))
            else:
                yield path
        pending.extend(reversed(inner))


def _rules_of(folder: Path, place: str) -> tuple[Rules, ...]:
    for name in (OWN_RULES, GIT_RULES):
        path = folder / name
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            return ((place, GitIgnoreSpec.from_lines(lines)),)
    return ()


def _is_left_out(path: str, rules: Sequence[Rules], *, is_folder: bool) -> bool:
    for place, spec in reversed(rules):
        relative = path[len(place) + 1 :] if place else path
        said = spec.check_file(f"{relative}/" if is_folder else relative).include
        if said is not None:
            return said
    return False


def _pack(folder: Path, stream: IO[bytes]) -> tuple[int, int]:
    count = total = 0
    with (
        gzip.GzipFile(
            filename="", mode="wb", fileobj=stream, mtime=0, compresslevel=_LEVEL
        ) as zipped,
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in members(folder):
            count += 1
            total += _add(archive, folder, path, left_bytes=BYTES_MAX - total)
            if count > FILES_MAX:
                raise _too_much(folder, f"it has more than {FILES_MAX:,} files")
    stream.flush()
    return count, total


def _add(archive: tarfile.TarFile, folder: Path, path: str, *, left_bytes: int) -> int:
    """Add one file, link or folder; return its bytes."""
    place = folder / path
    found = place.lstat()
    info = tarfile.TarInfo(path)
    info.mtime, info.mode = _TIME_S, 0o755 if found.st_mode & stat.S_IXUSR else 0o644
    if stat.S_ISDIR(found.st_mode):
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif stat.S_ISLNK(found.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, _target(folder, path)
        archive.addfile(info)
    elif stat.S_ISREG(found.st_mode):
        if found.st_size > left_bytes:
            raise _too_much(folder, f"it has more than {BYTES_MAX:,} bytes")
        info.size = found.st_size
        with place.open("rb") as file:
            archive.addfile(info, file)
        return info.size
    return 0  # sockets and pipes mean nothing elsewhere


def _target(folder: Path, path: str) -> str:
    target = (folder / path).readlink()
    inside = Path(os.path.normpath(Path(path).parent / target))
    if target.is_absolute() or inside.parts[:1] == ("..",):
        raise InvalidRequest(
            f"pack {folder / path}: it links to {target}, which is outside of the folder",
            hint=f"name it in {OWN_RULES}, or use `inputs` for data from elsewhere",
        )
    return str(target)


def _too_much(folder: Path, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"send {folder}: {what}",
        hint=f"name what the job does not need in {OWN_RULES}; data belongs into `inputs`",
    )
