"""How an engine knows which of its replicas have said lately that they serve, and what they need for it."""

from typing import Protocol

from moulin.domain.ids import AttemptId
from moulin.domain.registration import Registration


class Registrations(Protocol):
    """The registrations of replicas; safe to use from several threads."""

    def of(self, attempt: AttemptId) -> Registration | None:
        """Return the last word of a replica, run out or not; None where it never said any."""
        ...

    def replica_key(self, attempt: AttemptId) -> str:
        """Return the key that callers show at a replica's door, the same at every call."""
        ...

    def registration_key(self, attempt: AttemptId) -> str:
        """Return the key with which a replica registers, the same at every call."""
        ...
