"""Which replicas may serve a request, and which of them serves this one.

It decides by jurisdiction first, then by load. A replica whose country is only guessed never
satisfies a restriction (DESIGN rule 3). It never opens a connection and never retries.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Protocol, TypeVar

from moulin.domain.factory import CountryBasis
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.snapshot import ReplicaView


class Load(Protocol):
    """What choosing needs to know of a replica; times in seconds of one monotonic clock."""

    outstanding: int
    served: int
    parallel_requests: int
    suspect_until_s: float


L = TypeVar("L", bound=Load)


def is_permitted(replica: ReplicaView, restrictions: Iterable[tuple[str, ...]]) -> bool:
    """Whether the replica's country satisfies every restriction; an empty one restricts nothing."""
    asked = [countries for countries in restrictions if countries]
    if not asked:
        return True
    if replica.country_basis == CountryBasis.GUESSED.value:
        return False
    return all(replica.country in countries for countries in asked)


def forbidden_reason(replica: ReplicaView, restrictions: Iterable[tuple[str, ...]]) -> Reason:
    """Say why `is_permitted` was False for a replica."""
    if replica.country_basis == CountryBasis.GUESSED.value:
        return Reason(code=ReasonCode.COUNTRY_NOT_ASSERTED, parameters={"zone": replica.zone})
    asked = [set(countries) for countries in restrictions if countries]
    allowed = ", ".join(sorted(set.intersection(*asked))) or "no country"
    return Reason(
        code=ReasonCode.JURISDICTION_FORBIDS,
        parameters={"allowed": allowed, "zone": replica.zone, "country": replica.country},
    )


def choose(loads: Sequence[L], now_s: float, tried: Container[L] = ()) -> L | None:
    """Return the replica with the fewest requests under way that has a slot free, or None.

    A suspect replica is taken only when no other has a slot; one in `tried` never.

    Order:  fewest outstanding, then fewest served, then the order given.
    Cost:   O(replicas), no allocation.
    """
    best: L | None = None
    best_suspect = True
    for load in loads:
        if load.outstanding >= load.parallel_requests or load in tried:
            continue
        suspect = load.suspect_until_s > now_s
        if best is None or (
            suspect < best_suspect
            or (
                suspect == best_suspect
                and (load.outstanding, load.served) < (best.outstanding, best.served)
            )
        ):
            best, best_suspect = load, suspect
    return best
