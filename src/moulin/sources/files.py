"""Model files the operator already has: described from their own header, linked into the store."""

import mmap
import os
import shutil
from pathlib import Path

from moulin.domain.errors import SourceError, SourceUnavailable
from moulin.domain.gguf import Header, check_whole, read_header
from moulin.domain.model import (
    LocalFile,
    Model,
    Provenance,
    Variant,
    architecture_of,
    repacked_bytes,
)
from moulin.sources.checkpoints import describe_checkpoint, place_checkpoint
from moulin.sources.disk import Report, digest_of, full_disk_named, report_nothing


def read_model_header(path: Path) -> Header:
    """Read and check the header of a model file against its size.

    Raises `SourceUnavailable` when there is no such file, `SourceError` when it is no whole GGUF.
    """
    try:
        with path.open("rb") as file:
            # Not closed by hand: a view of it may outlive this block in an error's traceback.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = read_header(memoryview(data))
        check_whole(header, len(data))
        return header
    except ValueError as cause:
        raise SourceError(f"read {path}: the file is empty") from cause
    except OSError as cause:
        raise SourceUnavailable(
            f"read {path}: {cause.strerror}", hint="give the full path of a GGUF file"
        ) from cause
    except SourceError as cause:
        raise SourceError(
            f"{path}: {cause.message}", hint=cause.hint, details=cause.details
        ) from cause


def describe_file(name: str, report: Report = report_nothing, *, sha256: str = "") -> Model:
    """Return a catalogue entry for `file:/path/to/model.gguf`, made from the file itself.

    A path may also name a folder in the form of the model hub; see `describe_checkpoint`.

    Cost: one read of the file, for its digest, unless `sha256` says it because it was verified.

    Raises `SourceUnavailable` and `SourceError` as `read_model_header` does, and `SourceError` for
    one piece of a split model.
    """
    path = Path(name.removeprefix("file:")).expanduser().resolve()
    if path.is_dir():
        return describe_checkpoint(path, report, sha256=sha256)
    header = read_model_header(path)
    if header.integer("split.count") > 1:
        raise SourceError(
            f"use {path}: it is one of {header.integer('split.count')} pieces",
            hint="join them first, for example with llama.cpp's gguf-split --merge",
        )
    licence = header.text("general.license")
    return Model(
        name=name,
        title=header.text("general.name") or path.stem,
        publisher=header.text("general.organization") or "not stated",
        licence=licence or "not stated",
        licence_url=header.text("general.license.link"),
        card="A file of the operator; Moulin knows no more of it than the file says.",
        architecture=architecture_of(header),
        variants=(
            Variant(
                name="file",
                precision=f"gguf file type {header.integer('general.file_type', -1)}",
                size_bytes=path.stat().st_size,
                sha256=sha256 or digest_of(path, report),
                provenance=Provenance.LOCAL,
                sources=(LocalFile(path=str(path)),),
                repacked_bytes=repacked_bytes(header),
            ),
        ),
    )


def place_file(source: LocalFile, part: Path) -> None:
    """Make `part` the same file or folder by hard links, or copies where no link is possible.

    Raises `SourceUnavailable` when the file is gone, `DiskFull` when a copy does not fit.
    """
    origin = Path(source.path)
    if origin.is_dir():
        place_checkpoint(source, part)
        return
    part.unlink(missing_ok=True)
    try:
        os.link(origin, part)
    except FileNotFoundError as cause:
        raise SourceUnavailable(f"read {origin}: it is gone") from cause
    except OSError:
        # Another file system, or one without links, or a file of somebody else.
        with full_disk_named(part):
            shutil.copyfile(origin, part)
