"""Fetches a model file from an S3-compatible object store, continuing where an earlier try stopped.

The protocol, credentials and retries are `s3fs`'s (an fsspec file system): keys come from the usual
environment variables (AWS_ACCESS_KEY_ID and its companions, AWS_ENDPOINT_URL) or the credentials
file they name, are read by that library, and are never shown, stored or put on a command line.
An object has no digest that may be trusted before its first download: what was half-fetched is
continued only while the store states the same ETag and size for it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from moulin.domain.errors import SourceUnavailable
from moulin.domain.model import ObjectFile, Progress
from moulin.sources.disk import Report, check_room, full_disk_named, size_or_zero

BLOCK_BYTES: Final = 8 * 2**20
CHANGES_MAX: Final = 3
_CHECK: Final = "check the address, AWS_ENDPOINT_URL and the credentials in the environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectState:
    """What the store states of an object: which of its contents, and how long it is."""

    etag: str
    size_bytes: int


def fetch_object(source: ObjectFile, part: Path, report: Report) -> ObjectState:
    """Bring `part` to the object's full length; return which object that was.

    Raises `SourceUnavailable` when the store is out of reach, refuses, has no such object, or when
    the object changes all the time; what was fetched is kept. `DiskFull` when there is no room.
    """
    with _opened(source) as files:
        for _ in range(CHANGES_MAX):
            state = _stated(files, source)
            _forget_another(part, state)
            check_room(part.parent, state.size_bytes - size_or_zero(part))
            _append(files, source, state, part, report)
            if _stated(files, source) == state:
                return state
            _mark(part).unlink(missing_ok=True)
    raise SourceUnavailable(
        f"fetch {source.address}: it changed while it was fetched",
        hint="wait until whoever writes it is done",
    )


def forget_state(part: Path) -> None:
    """Forget of which object `part` was, once it has its name."""
    _mark(part).unlink(missing_ok=True)


def _append(files: Any, source: ObjectFile, state: ObjectState, part: Path, report: Report) -> None:
    done = size_or_zero(part)
    with full_disk_named(part), part.open("ab") as file:
        while done < state.size_bytes:
            end = min(done + BLOCK_BYTES, state.size_bytes)
            block = files.cat_file(source.path, start=done, end=end)
            if len(block) != end - done:
                raise SourceUnavailable(
                    f"fetch {source.address}: {len(block)} bytes came, {end - done} were asked for",
                    hint="try again; what was fetched is kept and continued",
                )
            file.write(block)
            done = end
            report(Progress(stage="downloading", bytes_done=done, bytes_total=state.size_bytes))


def _stated(files: Any, source: ObjectFile) -> ObjectState:
    found = files.info(source.path, refresh=True)
    if found.get("type") != "file":
        raise SourceUnavailable(f"fetch {source.address}: it is no object", hint=_CHECK)
    return ObjectState(etag=str(found.get("ETag", "")).strip('"'), size_bytes=int(found["size"]))


def _forget_another(part: Path, state: ObjectState) -> None:
    """Delete a half that is of another object than the store has now, and remember which this is."""
    mark = _mark(part)
    wanted = json.dumps(asdict(state), sort_keys=True)
    if not mark.exists() or mark.read_text() != wanted or size_or_zero(part) > state.size_bytes:
        part.unlink(missing_ok=True)
        mark.write_text(wanted)


def _mark(part: Path) -> Path:
    return part.with_name(f"{part.name}.state")


@contextmanager
def _opened(source: ObjectFile) -> Iterator[Any]:
    """Yield the file system; whatever it raises is told as `SourceUnavailable`, without secrets."""
    try:
        import s3fs
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as cause:
        raise SourceUnavailable(
            f"fetch {source.address}: s3fs is not installed", hint="pip install 'moulin[s3]'"
        ) from cause
    files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    try:
        yield files
    except FileNotFoundError as cause:
        raise _refused(source, "there is no such object") from cause
    except PermissionError as cause:
        raise _refused(source, "the store refuses these credentials") from cause
    except (BotoCoreError, ClientError) as cause:
        raise _refused(source, type(cause).__name__) from cause
    except OSError as cause:
        if cause.filename is not None:
            raise  # the disk's, not the store's
        raise _refused(source, type(cause).__name__) from cause


def _refused(source: ObjectFile, what: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"fetch {source.address}: {what}", hint=_CHECK, details={"problem": what}
    )
