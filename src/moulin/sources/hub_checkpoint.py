"""Fetches a checkpoint from the model hub, each file held to what the hub states of it.

Large files have a SHA-256 there, small ones git's SHA-1 of a blob. The digest of all of them
together is ours: nobody states it before the first download, and it is pinned from then on.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.domain.checkpoint import chosen_names
from moulin.domain.errors import DigestMismatch, SourceError
from moulin.domain.model import HubRepository, Progress
from moulin.sources.disk import Report, check_room, digest_of, size_or_zero
from moulin.sources.download import Count, Patience, download
from moulin.sources.hub import HubEntry, HubListing, list_hub

SMALL_BYTES_MAX: Final = 100 * 10**6


def fetch_checkpoint(
    source: HubRepository, part: Path, patience: Patience, report: Report, endpoint: str = ""
) -> HubListing:
    """Bring every file of the checkpoint into the folder `part`; return what the hub stated.

    Raises `SourceUnavailable` (what was fetched is kept and continued), `DigestMismatch` for a file
    that is not what the hub stated, `SourceError` for a repository without one, and `DiskFull`.
    """
    listing = list_hub(source, patience.connect_s, endpoint)
    names = chosen_names(entry.name for entry in listing.entries)
    entries = tuple(entry for entry in listing.entries if entry.name in names)
    if not entries:
        raise SourceError(f"fetch {source.address}: it holds no checkpoint")
    part.mkdir(exist_ok=True)
    total = sum(entry.size_bytes for entry in entries)
    before = sum(size_or_zero(part / entry.name) for entry in entries)
    check_room(part, total - before)
    # Of another commit, or of a name that is not wanted any more.
    for path in part.iterdir():
        if path.name not in names:
            path.unlink()
    done = 0
    for entry in entries:

        def count(file_bytes: int, base: int = done) -> None:
            stage = "downloading"
            report(Progress(stage=stage, bytes_done=base + file_bytes, bytes_total=total))

        _fetch(entry, part / entry.name, patience, count)
        done += entry.size_bytes
    return replace(listing, entries=entries)


def _fetch(entry: HubEntry, path: Path, patience: Patience, count: Count) -> None:
    """Bring one file to its full length and compare it."""
    was_there = size_or_zero(path)
    for is_last in (not was_there, True):
        download(entry.address, path, patience, count)
        if _is_stated(entry, path):
            return
        # What was there may be half of another commit's file: one fresh start tells.
        path.unlink()
        if is_last:
            break
    raise DigestMismatch(
        f"verify {entry.name}: it is not what the hub stated; it was not kept",
        hint="the source was tampered with or replaced; choose another source",
        details={"sha256_promised": entry.sha256, "git_sha1_promised": entry.git_sha1},
    )


def _is_stated(entry: HubEntry, path: Path) -> bool:
    if entry.sha256:
        return digest_of(path) == entry.sha256
    if path.stat().st_size > SMALL_BYTES_MAX:
        return False
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return blob.hexdigest() == entry.git_sha1
