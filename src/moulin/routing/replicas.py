"""Which replicas may serve a request, and which of them serves this one.

It decides by jurisdiction first, then by health, then by load and by what a replica has read before.
A replica whose country is only guessed never
satisfies a restriction (DESIGN rule 3). It never opens a connection and never retries.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Final, Protocol, TypeVar

from moulin.domain.errors import InvalidRequest
from moulin.domain.factory import CountryBasis
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.section import check_country
from moulin.domain.snapshot import ReplicaView
from moulin.routing.affinity import NO_PREFIX, is_clearly_busier, weight
from moulin.routing.breaker import Circuit


class Load(Protocol):
    """What choosing needs to know of a replica.

    `work` is what the requests under way there may still take, as `work_of` counts it; `seat` its
    place in preferences.
    """

    outstanding: int
    work: int
    served: int
    parallel_requests: int
    circuit: Circuit
    seat: int


L = TypeVar("L", bound=Load)
COUNTRIES_MAX: Final = 64
_BYTES_PER_WORK: Final = 32


def work_of(body_bytes: int, tokens_output: int) -> int:
    """Return the work of a request: tokens it may write, and what reading takes in the same unit.

    A replica reads a token about ten times as fast as it writes one, and a token has 3 or 4 bytes.
    """
    return tokens_output + body_bytes // _BYTES_PER_WORK


def is_permitted(replica: ReplicaView, restrictions: Iterable[tuple[str, ...]]) -> bool:
    """Whether the replica's country satisfies every restriction; an empty one restricts nothing."""
    asked = [countries for countries in restrictions if countries]
    if not asked:
        return True
    if replica.country_basis == CountryBasis.GUESSED.value:
        return False
    return all(replica.country in countries for countries in asked)


def narrowing(header: str) -> tuple[str, ...]:
    """Return the countries that a request's header leaves of those its key may use.

    Raises `InvalidRequest` for anything but two-letter codes with commas between.

    >>> narrowing("fr, SE")
    ('FR', 'SE')
    """
    codes = [code.strip() for code in header.split(",")]
    if len(codes) > COUNTRIES_MAX:
        raise InvalidRequest(f"read x-moulin-where: more than {COUNTRIES_MAX} countries")
    return tuple(sorted({check_country("the request", "x-moulin-where", code) for code in codes}))


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


def choose(
    loads: Sequence[L],
    now_s: float,
    tried: Container[L] = (),
    prefix: int = NO_PREFIX,
    own: int = 0,
) -> L | None:
    """Return the replica with the least work under way that has a slot free, or None to wait.

    With a `prefix`, the replica that most likely holds it goes before, unless it is clearly busier
    for a request of `own` work. An open circuit gets nothing until its rest is over, then one
    request; only where every circuit is open, the one that rests the shortest is asked all the
    same. A replica in `tried` is never chosen.

    Order:  least work, then fewest served, then the order given.
    Cost:   O(replicas), no allocation.
    """
    best: L | None = None
    is_none_closed = True
    for load in loads:
        if load in tried:
            continue
        if load.circuit.rests_until_s:
            if load.circuit.is_due(now_s) and load.outstanding < load.parallel_requests:
                return load
            continue
        is_none_closed = False
        if load.outstanding >= load.parallel_requests:
            continue
        if best is None or (load.work, load.served) < (best.work, best.served):
            best = load
    if best is None:
        return _shortest_rest(loads, tried) if is_none_closed else None
    if prefix == NO_PREFIX:
        return best
    favourite = _favourite(loads, prefix, tried)
    if favourite is None or is_clearly_busier(favourite.work, best.work, own):
        return best
    return favourite


def _favourite(loads: Sequence[L], prefix: int, tried: Container[L]) -> L | None:
    """Return the replica a prefix prefers of those that may take it; the next best when it is full."""
    found: L | None = None
    most = -1
    for load in loads:
        if (
            load.outstanding >= load.parallel_requests
            or load.circuit.rests_until_s
            or load in tried
        ):
            continue
        liking = weight(prefix, load.seat)
        if liking > most:
            found, most = load, liking
    return found


def _shortest_rest(loads: Sequence[L], tried: Container[L]) -> L | None:
    free = [
        load for load in loads if load.outstanding < load.parallel_requests and load not in tried
    ]
    return min(free, key=lambda load: load.circuit.rests_until_s, default=None)
