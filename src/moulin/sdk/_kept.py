"""What tenants keep (files, batches) and what names stand for: the resources of both clients.

The plain class and its asynchronous twin stand here together because they differ in nothing but
`await`; every request is built in `_requests`.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from moulin.domain.control import Applied, FactoryPage
from moulin.domain.errors import InvalidRequest, NotFound
from moulin.domain.factory import Alias, ObjectKind
from moulin.domain.objects import BATCH_WINDOW_S, BatchJob, BatchWanted, StoredObject
from moulin.domain.wire import decode
from moulin.sdk import _requests as requests
from moulin.sdk import _scripts as scripts
from moulin.sdk._core import Upload

if TYPE_CHECKING:
    from moulin.sdk.asynchronous import AsyncMoulin
    from moulin.sdk.synchronous import Moulin

CHAT: Final = "/v1/chat/completions"


class Files:
    """Files of the key's project."""

    def __init__(self, client: "Moulin") -> None:
        self._client = client

    def upload(
        self,
        content: bytes | BinaryIO | Path,
        *,
        name: str = "",
        purpose: str = "batch",
        kept_s: int = 0,
    ) -> StoredObject:
        """Store a file, a path's as it is read; `kept_s` 0 keeps it for 30 days, no file longer."""
        with opened(content, name) as (stream, title):
            return self._client.send(requests.upload_file(_upload(stream, title, purpose, kept_s)))

    def every(self, *, purpose: str = "", limit: int = 0) -> Iterator[StoredObject]:
        """Yield files, newest first, reading pages as needed; `limit` 0 means all."""
        yield from self._client.run(scripts.every_file(purpose, limit))

    def get(self, id: str) -> StoredObject:
        """Return what is known of one file."""
        return self._client.send(requests.file(id))

    def content(self, id: str) -> Iterator[bytes]:
        """Yield a file's bytes as they come."""
        yield from self._client.pieces(requests.file_content(id))

    def delete(self, id: str) -> StoredObject:
        """Delete a file with its bytes."""
        return self._client.send(requests.delete_file(id))


class Batches:
    """Requests in files, carried out at the batch price when there is room."""

    def __init__(self, client: "Moulin") -> None:
        self._client = client

    def create(
        self,
        input_files: Sequence[str] = (),
        *,
        lines: Sequence[Mapping[str, object]] = (),
        endpoint: str = CHAT,
        model: str = "",
        window_s: int = BATCH_WINDOW_S,
        metadata: Mapping[str, str] | None = None,
    ) -> BatchJob:
        """Open a batch of uploaded files, or of requests sent along."""
        wanted = _wanted(input_files, lines, endpoint, window_s, (model, metadata))
        return self._client.send(requests.open_batch(wanted))

    def every(self, *, limit: int = 0) -> Iterator[BatchJob]:
        """Yield batches, newest first, reading pages as needed; `limit` 0 means all."""
        yield from self._client.run(scripts.every_batch(limit))

    def get(self, id: str) -> BatchJob:
        """Return one batch with how far it is."""
        return self._client.send(requests.batch(id))

    def follow(self, id: str, *, timeout_s: float = 0.0) -> Iterator[BatchJob]:
        """Yield the batch each time it is further; the last value has a final state."""
        yield from self._client.run(scripts.follow_batch(id, timeout_s))

    def cancel(self, id: str) -> BatchJob:
        """Begin no further line; what is done is kept."""
        return self._client.send(requests.cancel_batch(id))

    def delete(self, id: str) -> BatchJob:
        """Forget a batch that has ended; its files stay."""
        return self._client.send(requests.delete_batch(id))

    def results(self, id: str) -> Iterator[bytes]:
        """Yield the lines that were answered; raises `NotFound` while there is no such file."""
        yield from self._client.files.content(_file_of(self.get(id), is_errors=False))

    def errors(self, id: str) -> Iterator[bytes]:
        """Yield the lines that were not; raises `NotFound` where there is no such file."""
        yield from self._client.files.content(_file_of(self.get(id), is_errors=True))


class Aliases:
    """Names that stand for endpoints; for operators."""

    def __init__(self, client: "Moulin") -> None:
        self._client = client

    def set(self, alias: Alias) -> Applied:
        """Let a name stand for endpoints; all that was said of it before is replaced."""
        return self._client.factory.apply(managed_by(alias.name), (alias,))

    def list(self) -> tuple[tuple[Alias, str], ...]:
        """Return every alias with the file that manages it."""
        return aliases_of(self._client.factory.get())

    def remove(self, name: str) -> Applied:
        """Remove a name that `set` made; raises `NotFound` where that made none."""
        return _removed(name, self._client.factory.apply(managed_by(name), ()))


class AsyncFiles:
    """Files of the key's project."""

    def __init__(self, client: "AsyncMoulin") -> None:
        self._client = client

    async def upload(
        self,
        content: bytes | BinaryIO | Path,
        *,
        name: str = "",
        purpose: str = "batch",
        kept_s: int = 0,
    ) -> StoredObject:
        """Store a file, a path's as it is read; `kept_s` 0 keeps it for 30 days, no file longer."""
        with opened(content, name) as (stream, title):
            return await self._client.send(
                requests.upload_file(_upload(stream, title, purpose, kept_s))
            )

    async def every(self, *, purpose: str = "", limit: int = 0) -> AsyncIterator[StoredObject]:
        """Yield files, newest first, reading pages as needed; `limit` 0 means all."""
        async for each in self._client.run(scripts.every_file(purpose, limit)):
            yield each

    async def get(self, id: str) -> StoredObject:
        """Return what is known of one file."""
        return await self._client.send(requests.file(id))

    async def content(self, id: str) -> AsyncIterator[bytes]:
        """Yield a file's bytes as they come."""
        async for each in self._client.pieces(requests.file_content(id)):
            yield each

    async def delete(self, id: str) -> StoredObject:
        """Delete a file with its bytes."""
        return await self._client.send(requests.delete_file(id))


class AsyncBatches:
    """Requests in files, carried out at the batch price when there is room."""

    def __init__(self, client: "AsyncMoulin") -> None:
        self._client = client

    async def create(
        self,
        input_files: Sequence[str] = (),
        *,
        lines: Sequence[Mapping[str, object]] = (),
        endpoint: str = CHAT,
        model: str = "",
        window_s: int = BATCH_WINDOW_S,
        metadata: Mapping[str, str] | None = None,
    ) -> BatchJob:
        """Open a batch of uploaded files, or of requests sent along."""
        wanted = _wanted(input_files, lines, endpoint, window_s, (model, metadata))
        return await self._client.send(requests.open_batch(wanted))

    async def every(self, *, limit: int = 0) -> AsyncIterator[BatchJob]:
        """Yield batches, newest first, reading pages as needed; `limit` 0 means all."""
        async for each in self._client.run(scripts.every_batch(limit)):
            yield each

    async def get(self, id: str) -> BatchJob:
        """Return one batch with how far it is."""
        return await self._client.send(requests.batch(id))

    async def follow(self, id: str, *, timeout_s: float = 0.0) -> AsyncIterator[BatchJob]:
        """Yield the batch each time it is further; the last value has a final state."""
        async for each in self._client.run(scripts.follow_batch(id, timeout_s)):
            yield each

    async def cancel(self, id: str) -> BatchJob:
        """Begin no further line; what is done is kept."""
        return await self._client.send(requests.cancel_batch(id))

    async def delete(self, id: str) -> BatchJob:
        """Forget a batch that has ended; its files stay."""
        return await self._client.send(requests.delete_batch(id))

    async def results(self, id: str) -> AsyncIterator[bytes]:
        """Yield the lines that were answered; raises `NotFound` while there is no such file."""
        async for piece in self._client.files.content(
            _file_of(await self.get(id), is_errors=False)
        ):
            yield piece

    async def errors(self, id: str) -> AsyncIterator[bytes]:
        """Yield the lines that were not; raises `NotFound` where there is no such file."""
        async for piece in self._client.files.content(_file_of(await self.get(id), is_errors=True)):
            yield piece


class AsyncAliases:
    """Names that stand for endpoints; for operators."""

    def __init__(self, client: "AsyncMoulin") -> None:
        self._client = client

    async def set(self, alias: Alias) -> Applied:
        """Let a name stand for endpoints; all that was said of it before is replaced."""
        return await self._client.factory.apply(managed_by(alias.name), (alias,))

    async def list(self) -> tuple[tuple[Alias, str], ...]:
        """Return every alias with the file that manages it."""
        return aliases_of(await self._client.factory.get())

    async def remove(self, name: str) -> Applied:
        """Remove a name that `set` made; raises `NotFound` where that made none."""
        return _removed(name, await self._client.factory.apply(managed_by(name), ()))


def managed_by(name: str) -> str:
    """Return the name of the file that an alias belongs to that no file declares."""
    return f"alias {name}"


def aliases_of(page: FactoryPage) -> tuple[tuple[Alias, str], ...]:
    """Return the aliases among declared objects, each with the file that manages it."""
    return tuple(
        (decode(Alias, view.body), view.managed_by)
        for view in page.items
        if view.kind == ObjectKind.ALIAS
    )


@contextmanager
def opened(content: bytes | BinaryIO | Path, name: str) -> Iterator[tuple[bytes | BinaryIO, str]]:
    """Give what is to be sent, with its name; a path's file is closed again.

    Raises `InvalidRequest` for a path that cannot be read.
    """
    if not isinstance(content, Path):
        yield content, name or "upload"
        return
    try:
        stream = content.open("rb")
    except OSError as cause:
        raise InvalidRequest(f"read {content}: {cause.strerror}", hint="check the path") from cause
    with stream:
        yield stream, name or content.name


def _upload(content: bytes | BinaryIO, name: str, purpose: str, kept_s: int) -> Upload:
    fields = {"purpose": purpose}
    if kept_s:
        fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(kept_s)}
    return Upload(name=name, content=content, fields=fields)


def _wanted(
    input_files: Sequence[str],
    lines: Sequence[Mapping[str, object]],
    endpoint: str,
    window_s: int,
    rest: tuple[str, Mapping[str, str] | None],
) -> BatchWanted:
    model, metadata = rest
    return BatchWanted(
        endpoint=endpoint,
        input_files=tuple(input_files),
        requests=tuple(lines),
        model=model,
        window_s=window_s,
        metadata=dict(metadata or {}),
    )


def _file_of(batch: BatchJob, *, is_errors: bool) -> str:
    found = batch.error_file if is_errors else batch.output_file
    if not found:
        what = "errors" if is_errors else "results"
        raise NotFound(
            f"read the {what} of {batch.id}: there is no such file, the batch is {batch.state}",
            hint="there is one when the batch has ended and has such lines",
        )
    return found


def _removed(name: str, applied: Applied) -> Applied:
    if not applied.diffs:
        raise NotFound(
            f"remove the alias {name!r}: none of that name was set",
            hint="one of an operator file is removed there",
        )
    return applied
