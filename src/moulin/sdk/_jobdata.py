"""What jobs are given besides a command: secrets, and folders. The resources of both clients.

The plain class and its asynchronous twin stand here together because they differ in nothing but
`await`; every request is built in `_requests`.
"""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moulin.domain.errors import NotFound
from moulin.domain.objects import BUNDLE_KEPT_S, StoredObject, StoredPage
from moulin.domain.secrets import MasterRotated, SecretInfo, SecretPage, SecretWanted
from moulin.domain.units import NS_PER_S
from moulin.domain.workload import WorkloadSpec
from moulin.sdk import _requests as requests
from moulin.sdk._bundle import Bundle, packed
from moulin.sdk._core import Upload

if TYPE_CHECKING:
    from moulin.sdk.asynchronous import AsyncMoulin
    from moulin.sdk.synchronous import Moulin


# What a bundle that is there must still live, or it is sent again: jobs wait, and are retried.
KEPT_NS_MIN: Final = BUNDLE_KEPT_S * NS_PER_S // 2
# In the place of a digest in a trial: that there is a folder decides where a job may go.
_NOT_SENT: Final = "0" * 64


class Bundles:
    """Folders of a project that jobs start in copies of; what is there is not sent again."""

    def __init__(self, client: "Moulin") -> None:
        self._client = client

    def sync(self, folder: str | Path, *, project: str = "") -> str:
        """Pack a folder, send it unless the project keeps the same, and return its digest."""
        wanted = project or self._client.credentials.project
        with packed(Path(folder)) as found:
            if not self._has(wanted, found.sha256):
                call = requests.store_bundle(wanted, found.sha256, _upload(found))
                self._client.send(call)
            return found.sha256

    def list(self, *, project: str = "") -> StoredPage:
        """Return the project's bundles, newest first."""
        return self._client.send(requests.bundles(project or self._client.credentials.project))

    def delete(self, digest: str, *, project: str = "") -> StoredObject:
        """Delete a bundle that no unfinished job starts with."""
        wanted = project or self._client.credentials.project
        return self._client.send(requests.delete_bundle(wanted, digest))

    def synced(self, spec: WorkloadSpec, project: str) -> WorkloadSpec:
        """Return the spec with its relative `workdir` sent as a bundle; any other as it is."""
        folder = folder_of(spec)
        return spec if folder is None else started_in(spec, self.sync(folder, project=project))

    def _has(self, project: str, digest: str) -> bool:
        try:
            return is_kept(self._client.send(requests.bundle(project, digest)))
        except NotFound:
            return False


class AsyncBundles:
    """Folders of a project that jobs start in copies of; what is there is not sent again."""

    def __init__(self, client: "AsyncMoulin") -> None:
        self._client = client

    async def sync(self, folder: str | Path, *, project: str = "") -> str:
        """Pack a folder, send it unless the project keeps the same, and return its digest."""
        wanted = project or self._client.credentials.project
        packing = packed(Path(folder))
        found = await asyncio.to_thread(packing.__enter__)
        try:
            if not await self._has(wanted, found.sha256):
                call = requests.store_bundle(wanted, found.sha256, _upload(found))
                await self._client.send(call)
            return found.sha256
        finally:
            packing.__exit__(None, None, None)

    async def list(self, *, project: str = "") -> StoredPage:
        """Return the project's bundles, newest first."""
        wanted = project or self._client.credentials.project
        return await self._client.send(requests.bundles(wanted))

    async def delete(self, digest: str, *, project: str = "") -> StoredObject:
        """Delete a bundle that no unfinished job starts with."""
        wanted = project or self._client.credentials.project
        return await self._client.send(requests.delete_bundle(wanted, digest))

    async def synced(self, spec: WorkloadSpec, project: str) -> WorkloadSpec:
        """Return the spec with its relative `workdir` sent as a bundle; any other as it is."""
        folder = folder_of(spec)
        return (
            spec if folder is None else started_in(spec, await self.sync(folder, project=project))
        )

    async def _has(self, project: str, digest: str) -> bool:
        try:
            return is_kept(await self._client.send(requests.bundle(project, digest)))
        except NotFound:
            return False


def folder_of(spec: WorkloadSpec) -> Path | None:
    """Return the folder that a spec's tasks are to start in copies of: a relative `workdir`."""
    workdir = spec.task.workdir if spec.task is not None else ""
    return None if not workdir or Path(workdir).is_absolute() else Path(workdir)


def started_in(spec: WorkloadSpec, digest: str) -> WorkloadSpec:
    """Return a spec whose tasks start in copies of a bundle."""
    assert spec.task is not None
    return replace(spec, task=replace(spec.task, workdir="", bundle=digest))


def tried(spec: WorkloadSpec) -> WorkloadSpec:
    """Return a spec as it can be tried out without packing and sending its folder."""
    return spec if folder_of(spec) is None else started_in(spec, _NOT_SENT)


def is_kept(stored: StoredObject) -> bool:
    """Say whether a bundle will be there for long enough; times are the server's own."""
    return stored.expires_at_ns - time.time_ns() >= KEPT_NS_MIN


def _upload(found: Bundle) -> Upload:
    return Upload(name="bundle.tar.gz", content=found.stream)


class Secrets:
    """Secrets of a project: set, named, deleted; a value is never read back."""

    def __init__(self, client: "Moulin") -> None:
        self._client = client

    def set(self, name: str, value: str, *, project: str = "") -> SecretInfo:
        """Set a secret, in the place of one of that name."""
        wanted = SecretWanted(value=value)
        return self._client.send(requests.set_secret(self._project(project), name, wanted))

    def list(self, *, project: str = "") -> SecretPage:
        """Return the names, with who set each and when."""
        return self._client.send(requests.list_secrets(self._project(project)))

    def delete(self, name: str, *, project: str = "") -> SecretInfo:
        """Delete a secret; nothing can read it again, old copies of the log included."""
        return self._client.send(requests.delete_secret(self._project(project), name))

    def rotate(self) -> MasterRotated:
        """Replace the master key of all secrets of the factory; for operators."""
        return self._client.send(requests.rotate_master())

    def _project(self, project: str) -> str:
        return project or self._client.credentials.project


class AsyncSecrets:
    """Secrets of a project: set, named, deleted; a value is never read back."""

    def __init__(self, client: "AsyncMoulin") -> None:
        self._client = client

    async def set(self, name: str, value: str, *, project: str = "") -> SecretInfo:
        """Set a secret, in the place of one of that name."""
        wanted = SecretWanted(value=value)
        return await self._client.send(requests.set_secret(self._project(project), name, wanted))

    async def list(self, *, project: str = "") -> SecretPage:
        """Return the names, with who set each and when."""
        return await self._client.send(requests.list_secrets(self._project(project)))

    async def delete(self, name: str, *, project: str = "") -> SecretInfo:
        """Delete a secret; nothing can read it again, old copies of the log included."""
        return await self._client.send(requests.delete_secret(self._project(project), name))

    async def rotate(self) -> MasterRotated:
        """Replace the master key of all secrets of the factory; for operators."""
        return await self._client.send(requests.rotate_master())

    def _project(self, project: str) -> str:
        return project or self._client.credentials.project
