"""Folders in the form of the model hub: described from their own files, linked into the store.

A checkpoint is config, tokenizer and safetensors in one folder, known by one digest. What else lies
there (other formats of the weights, Python code) is left alone: it is never read and never run.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from moulin.domain.checkpoint import (
    CONFIG,
    LENGTH_BYTES,
    WEIGHTS,
    FileDigest,
    Weights,
    architecture_of_config,
    class_of_config,
    header_bytes,
    is_taken,
    joined,
    manifest_digest,
    read_index,
    read_weights,
)
from moulin.domain.errors import SourceError, SourceUnavailable
from moulin.domain.model import VLLM, LocalFile, Model, Progress, Provenance, Variant
from moulin.sources.disk import Report, digest_of, full_disk_named, report_nothing


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a folder with a model's configuration."""
    return path.is_dir() and (path / CONFIG).is_file()


def checkpoint_files(folder: Path) -> Sequence[Path]:
    """Return the files of a folder that belong to its checkpoint, by name.

    Raises `SourceUnavailable` when the folder cannot be read.
    """
    try:
        return sorted(p for p in folder.iterdir() if is_taken(p.name) and p.is_file())
    except OSError as cause:
        raise SourceUnavailable(
            f"read {folder}: {cause.strerror}", hint="give the full path of a folder"
        ) from cause


def checkpoint_bytes(folder: Path) -> int:
    """Return the size of all files of a checkpoint."""
    return sum(path.stat().st_size for path in checkpoint_files(folder))


def digest_of_checkpoint(folder: Path, report: Report = report_nothing) -> str:
    """Return the digest of the list of a checkpoint's files. Cost: one read of each."""
    total = checkpoint_bytes(folder)
    found: list[FileDigest] = []
    for path in checkpoint_files(folder):
        before = sum(file.size_bytes for file in found)
        sha256 = digest_of(path, _shifted(report, before, total))
        found.append(FileDigest(name=path.name, size_bytes=path.stat().st_size, sha256=sha256))
    return manifest_digest(found)


def describe_checkpoint(
    folder: Path, report: Report = report_nothing, *, sha256: str = ""
) -> Model:
    """Return a catalogue entry for a folder, made from the folder itself.

    Cost: one read of every file, for the digest, unless `sha256` says it because it was verified.

    Raises `SourceUnavailable` when it cannot be read, `SourceError` when it is no whole checkpoint
    of a text generator.
    """
    config = _read(folder / CONFIG)
    weights = _weights(folder)
    size_bytes = checkpoint_bytes(folder)
    return Model(
        name=folder.name,
        title=class_of_config(config) or folder.name,
        publisher="not stated",
        licence="not stated",
        licence_url="",
        card="A folder of the operator; Moulin knows no more of it than its files say.",
        architecture=architecture_of_config(config, weights.parameters),
        variants=(
            Variant(
                name="checkpoint",
                precision=weights.precision,
                size_bytes=size_bytes,
                sha256=sha256 or digest_of_checkpoint(folder, report),
                provenance=Provenance.LOCAL,
                sources=(LocalFile(path=str(folder)),),
            ),
        ),
        runtime=VLLM,
    )


def place_checkpoint(source: LocalFile, part: Path) -> None:
    """Make `part` a folder with the same files, by hard links, or copies where that is impossible.

    Raises `SourceUnavailable` when the folder is gone, `DiskFull` when copies do not fit.
    """
    folder = Path(source.path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for origin in checkpoint_files(folder):
        target = part / origin.name
        try:
            # The hub's own cache is links to blobs: the file is wanted, not the link.
            os.link(origin.resolve(), target)
        except OSError:
            # Another file system, or one without links, or a file of somebody else.
            with full_disk_named(target):
                shutil.copyfile(origin, target)


def _weights(folder: Path) -> Weights:
    pieces = [path for path in checkpoint_files(folder) if path.name.endswith(WEIGHTS)]
    if not pieces:
        raise SourceError(
            f"use {folder}: it holds no {WEIGHTS} file",
            hint="pickled weights (.bin, .pt) can run code and are not taken; convert them first",
        )
    _check_index(folder)
    return joined([_piece(path) for path in pieces])


def _check_index(folder: Path) -> None:
    """Raise `SourceError` when the list of pieces names one that is not there."""
    index = folder / f"model{WEIGHTS}.index.json"
    if index.is_file():
        missing = [name for name in read_index(_read(index)) if not (folder / name).is_file()]
        if missing:
            raise SourceError(
                f"use {folder}: {len(missing)} of its files are missing, first {missing[0]}",
                hint="copy the whole folder",
            )


def _piece(path: Path) -> Weights:
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(header_bytes(file.read(LENGTH_BYTES), size_bytes))
        return read_weights(header, size_bytes)
    except OSError as cause:
        raise SourceUnavailable(f"read {path}: {cause.strerror}") from cause
    except SourceError as cause:
        raise SourceError(
            f"{path}: {cause.message}", hint=cause.hint, details=cause.details
        ) from cause


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise SourceUnavailable(
            f"read {path}: {cause.strerror}", hint="a checkpoint has a config.json"
        ) from cause


def _shifted(report: Report, before: int, total: int) -> Callable[[Progress], None]:
    def shifted(progress: Progress) -> None:
        report(replace(progress, bytes_done=before + progress.bytes_done, bytes_total=total))

    return shifted
