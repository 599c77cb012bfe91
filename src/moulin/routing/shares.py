"""Who may use which part of every rate limit: slices, each with one gateway at a time.

It decides how the slices are divided evenly among the gateways that are heard, and that no slice is
used twice: one that a gateway was told to leave is nobody's until the gateway says that it has left
it, and then until the last minute in which it may have used it is over. A gateway that is not heard
serves nobody once its snapshot is stale; a minute later its slices are free. Nothing here is durable:
a new leader takes gateways at their word, and waits for those it knows of.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.limits import ALL_SLICES, SLICES, GatewayShare
from moulin.domain.units import NS_PER_S
from moulin.routing.rates import SLOTS

NS_PER_MS: Final = 1_000_000
QUARANTINE_NS: Final = SLOTS * NS_PER_S


@dataclass(slots=True)
class Lease:
    """What one gateway was told and may still go by, oldest first; it follows the newest it got."""

    told: list[GatewayShare]
    heard_at_ns: int

    def may_use(self) -> int:
        """Return every slice that the gateway may be using."""
        slices = 0
        for share in self.told:
            slices |= share.slices
        return slices


@dataclass(slots=True)
class Shares:
    """Every gateway's lease by name. Until `unheard` are heard, or `known_at_ns`, nothing is free.

    `silent_ns` is how long a gateway may serve after it was last heard, and a minute.
    """

    silent_ns: int
    unheard: set[str] = field(default_factory=set)
    known_at_ns: int = 0
    leases: dict[str, Lease] = field(default_factory=dict)
    freed: list[tuple[int, int]] = field(default_factory=list)

    def tell(
        self, gateway: str, share: GatewayShare | None, limited_ago_s: int, now_ns: int
    ) -> GatewayShare:
        """Return the share of a gateway that says which one it keeps to.

        `limited_ago_s` is when it last let a request through under a limit, -1 for never.
        """
        self._forget_silent(now_ns)
        is_known = self._is_all_known(gateway, now_ns)
        lease = self.leases.get(gateway)
        if lease is None:
            lease = self.leases[gateway] = Lease([], now_ns)
            if share is not None and not is_known:
                own = share.slices & ~self._others(gateway)
                lease.told.append(GatewayShare(slices=own, version=share.version))
        elif share is not None:
            self._confirm(lease, share.version, limited_ago_s, now_ns)
        lease.heard_at_ns = now_ns
        current = lease.told[-1] if lease.told else GatewayShare(slices=0, version=0)
        free = ALL_SLICES & ~self._others(gateway) & ~self._quarantined() if is_known else 0
        wanted = _fitted(current.slices, free, SLICES // len(self.leases))
        if wanted != current.slices or not lease.told:
            version = max(now_ns // NS_PER_MS, current.version + 1)
            current = GatewayShare(slices=wanted, version=version)
            lease.told.append(current)
        return current

    def _is_all_known(self, gateway: str, now_ns: int) -> bool:
        is_known = not self.unheard or now_ns >= self.known_at_ns
        self.unheard.discard(gateway)
        if is_known:
            self.unheard.clear()
        return is_known

    def _forget_silent(self, now_ns: int) -> None:
        for name, lease in list(self.leases.items()):
            if now_ns - lease.heard_at_ns > self.silent_ns:
                del self.leases[name]
        self.freed = [(slices, until_ns) for slices, until_ns in self.freed if until_ns > now_ns]

    def _confirm(self, lease: Lease, version: int, limited_ago_s: int, now_ns: int) -> None:
        """Drop what the gateway does not go by any more; what it left may be in its last minute."""
        before = lease.may_use()
        lease.told = [told for told in lease.told if told.version >= version]
        left = before & ~lease.may_use()
        if left and limited_ago_s >= 0:
            until_ns = now_ns + QUARANTINE_NS - limited_ago_s * NS_PER_S
            self.freed.append((left, until_ns))

    def _others(self, gateway: str) -> int:
        """Return every slice that another gateway may be using."""
        slices = 0
        for name, lease in self.leases.items():
            if name != gateway:
                slices |= lease.may_use()
        return slices

    def _quarantined(self) -> int:
        """Return every slice that was left less than a minute ago."""
        slices = 0
        for left, _ in self.freed:
            slices |= left
        return slices


def known_after(gateways: Iterable[str], silent_ns: int, now_ns: int) -> Shares:
    """Return the shares of a new leader that knows of these gateways and nothing of their shares.

    What none of several says to have may have been left by one of them just before.
    """
    unheard = set(gateways)
    freed = [(ALL_SLICES, now_ns + QUARANTINE_NS)] if len(unheard) > 1 else []
    return Shares(silent_ns=silent_ns, unheard=unheard, known_at_ns=now_ns + silent_ns, freed=freed)


def _fitted(current: int, free: int, target: int) -> int:
    """Return `current` with slices left, or added from `free`, until there are `target`."""
    slices = [index for index in range(SLICES) if current >> index & 1][:target]
    added = [index for index in range(SLICES) if (free & ~current) >> index & 1]
    slices += added[: target - len(slices)]
    return sum(1 << index for index in slices)
