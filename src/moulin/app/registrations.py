"""The registrations that replicas hold, in memory: after a restart they are said again in seconds.

It believes whoever shows the key of an attempt that is live. What a registration means for routing is
the engine's to say; an attempt that ended cannot have one, so no late word of it is heard.
"""

from collections.abc import Callable

from moulin.domain.errors import Conflict, InvalidRequest
from moulin.domain.ids import AttemptId
from moulin.domain.registration import TTL_S, Registration, RegistrationWanted, is_door
from moulin.identity.registrations import registration_key
from moulin.ports.clock import Clock

NS_PER_S = 1_000_000_000
KEPT_NS = 3600 * NS_PER_S


class RegistrationBook:
    """Implements `ports.Registrations`, and takes the replicas' words from the API."""

    def __init__(self, clock: Clock, pepper: bytes, replica_key: Callable[[str], str]) -> None:
        self._clock = clock
        self._pepper = pepper
        self._replica_key = replica_key
        self._is_live: Callable[[AttemptId], bool] = _knows_none
        self._held: dict[AttemptId, Registration] = {}

    def heed(self, is_live: Callable[[AttemptId], bool]) -> None:
        """Believe live attempts from now on; before, there is none."""
        self._is_live = is_live

    def hold(self, attempt: AttemptId, wanted: RegistrationWanted) -> Registration:
        """Believe a replica's word for a while.

        Raises `Conflict` for an attempt that has ended, `InvalidRequest` for no address.
        """
        if not is_door(wanted.address):
            raise InvalidRequest(f"register {attempt}: {wanted.address!r} is no host:port")
        if not self._is_live(attempt):
            raise Conflict(
                f"register {attempt}: this attempt has ended", hint="its successor registers itself"
            )
        now_ns = self._clock.now_ns()
        registration = Registration(
            attempt=attempt,
            model=wanted.model,
            address=wanted.address,
            started_at_ns=wanted.started_at_ns,
            expires_at_ns=now_ns + TTL_S * NS_PER_S,
        )
        if attempt not in self._held:
            self._forget_old(now_ns)
        self._held[attempt] = registration
        return registration

    def let_go(self, attempt: AttemptId) -> None:
        """Let a registration run out now; one that is not held is no error."""
        held = self._held.get(attempt)
        if held is not None:
            self._held[attempt] = Registration(
                attempt=attempt,
                model=held.model,
                address=held.address,
                started_at_ns=held.started_at_ns,
                expires_at_ns=self._clock.now_ns(),
            )

    def every(self) -> tuple[Registration, ...]:
        """Return the last word of every replica that may still run, by its name."""
        held = list(self._held.values())
        return tuple(sorted((each for each in held if self._is_live(each.attempt)), key=_name))

    def of(self, attempt: AttemptId) -> Registration | None:
        """Return the last word of a replica, run out or not."""
        return self._held.get(attempt)

    def replica_key(self, attempt: AttemptId) -> str:
        """Return the key that callers show at a replica's door."""
        return self._replica_key(attempt)

    def registration_key(self, attempt: AttemptId) -> str:
        """Return the key with which a replica registers."""
        return registration_key(self._pepper, attempt)

    def _forget_old(self, now_ns: int) -> None:
        for attempt, held in list(self._held.items()):
            if held.expires_at_ns + KEPT_NS < now_ns and not self._is_live(attempt):
                self._held.pop(attempt, None)


def _name(registration: Registration) -> str:
    return registration.attempt


def _knows_none(_attempt: AttemptId) -> bool:
    return False
