"""What jobs are given besides a command: secrets. The resources of both clients.

The plain class and its asynchronous twin stand here together because they differ in nothing but
`await`; every request is built in `_requests`.
"""

from typing import TYPE_CHECKING

from moulin.domain.secrets import MasterRotated, SecretInfo, SecretPage, SecretWanted
from moulin.sdk import _requests as requests

if TYPE_CHECKING:
    from moulin.sdk.asynchronous import AsyncMoulin
    from moulin.sdk.synchronous import Moulin


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
