"""Which replica may serve, and which one does."""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from moulin.domain.errors import InvalidRequest
from moulin.domain.reasons import ReasonCode
from moulin.domain.snapshot import ReplicaView
from moulin.routing.affinity import seat_of
from moulin.routing.breaker import FAILURES_MAX, Circuit, Failure
from moulin.routing.replicas import choose, forbidden_reason, is_permitted, narrowing


@dataclass(eq=False)
class Load:
    outstanding: int = 0
    served: int = 0
    parallel_requests: int = 2
    work: int = 0
    seat: int = 0
    circuit: Circuit = field(default_factory=Circuit)


def resting(until_s: float, *, is_probed: bool = False, outstanding: int = 0) -> Load:
    load = Load(outstanding=outstanding)
    load.circuit.failures = FAILURES_MAX
    load.circuit.rests_until_s = until_s
    load.circuit.is_probed = is_probed
    return load


def view(country: str = "FR", basis: str = "asserted by the operator") -> ReplicaView:
    return ReplicaView(
        attempt="a", address="h:1", key="", zone="z", country=country, country_basis=basis
    )


@pytest.mark.parametrize(
    ("replica", "restrictions", "permitted"),
    [
        (view(), ((), ()), True),
        (view(basis="guessed"), ((), ()), True),
        (view(), (("FR",), ()), True),
        (view(), (("FR", "SE"), ("SE", "FR")), True),
        (view(), (("FR",), ("SE",)), False),
        (view("US"), (("FR",), ()), False),
        (view("US"), ((), ("FR",)), False),
        (view(basis="guessed"), (("FR",), ()), False),
        (view(basis="guessed"), ((), ("FR",)), False),
        (view(basis="attested"), (("FR",), ()), True),
    ],
)
def test_permission(
    replica: ReplicaView, restrictions: tuple[tuple[str, ...], ...], permitted: bool
) -> None:
    assert is_permitted(replica, restrictions) is permitted


def test_why_not() -> None:
    reason = forbidden_reason(view("US"), (("FR", "SE"), ("SE", "DE")))
    assert reason.code is ReasonCode.JURISDICTION_FORBIDS
    assert reason.parameters == {"allowed": "SE", "zone": "z", "country": "US"}
    assert forbidden_reason(view(), (("FR",), ("SE",))).parameters["allowed"] == "no country"
    guessed = forbidden_reason(view(basis="guessed"), (("FR",),))
    assert guessed.code is ReasonCode.COUNTRY_NOT_ASSERTED


@pytest.mark.parametrize(
    ("loads", "tried", "chosen"),
    [
        ((), (), None),
        ((Load(), Load()), (), 0),
        ((Load(work=10), Load()), (), 1),
        ((Load(work=10, outstanding=1), Load(work=11)), (), 0),
        ((Load(served=5), Load(served=4)), (), 1),
        ((Load(outstanding=2), Load(work=50)), (), 1),
        ((Load(outstanding=2), Load(outstanding=2)), (), None),
        ((Load(), Load(work=10)), (0,), 1),
        ((Load(), Load()), (0, 1), None),
        # An open circuit gets nothing, not even when the others are full.
        ((resting(10.0), Load(work=50)), (), 1),
        ((resting(10.0), Load(outstanding=2)), (), None),
        # One request tries it when its rest is over, and only one.
        ((Load(), resting(4.0)), (), 1),
        ((Load(), resting(4.0, is_probed=True)), (), 0),
        ((Load(), resting(4.0, outstanding=2)), (), 0),
        # Where all circuits are open, somebody is asked all the same.
        ((resting(10.0), resting(9.0)), (), 1),
        ((resting(10.0), resting(9.0, outstanding=2)), (), 0),
        ((resting(10.0), Load()), (1,), 0),
        ((resting(10.0, outstanding=2),), (), None),
    ],
)
def test_choice(loads: tuple[Load, ...], tried: tuple[int, ...], chosen: int | None) -> None:
    found = choose(loads, 5.0, [loads[index] for index in tried])
    assert found is (None if chosen is None else loads[chosen])


def seats(count: int) -> list[Load]:
    return [Load(parallel_requests=100, seat=seat_of(f"r{number}")) for number in range(count)]


def test_a_prefix_prefers_one_replica_and_keeps_to_it_while_it_is_not_clearly_busier() -> None:
    loads = seats(4)
    favourite = choose(loads, 0.0, (), 77, 10)
    assert favourite is not None
    favourite.work = 20
    assert choose(loads, 0.0, (), 77, 10) is favourite
    favourite.work = 21
    second = choose(loads, 0.0, (), 77, 10)
    assert second is not favourite
    favourite.work = 0
    favourite.circuit.failed(Failure.UNREACHABLE, 0.0)
    assert choose(loads, 0.0, (), 77, 10) is not favourite


def test_prefixes_spread_over_all_replicas() -> None:
    loads = seats(4)
    chosen = Counter(id(choose(loads, 0.0, (), prefix, 10)) for prefix in range(1, 4001))
    assert len(chosen) == 4
    assert all(800 < count < 1200 for count in chosen.values())


def test_a_replica_that_goes_moves_only_its_own_prefixes() -> None:
    loads = seats(5)
    before = {prefix: choose(loads, 0.0, (), prefix, 10) for prefix in range(1, 500)}
    gone = loads.pop()
    for prefix, load in before.items():
        if load is not gone:
            assert choose(loads, 0.0, (), prefix, 10) is load


@pytest.mark.parametrize(
    ("header", "countries"),
    [("FR", ("FR",)), ("fr , SE,FR", ("FR", "SE"))],
)
def test_a_header_narrows(header: str, countries: tuple[str, ...]) -> None:
    assert narrowing(header) == countries


@pytest.mark.parametrize("header", [" ", "France", "FR,", "FR;SE", ",".join(["FR"] * 65)])
def test_a_header_that_names_no_countries(header: str) -> None:
    with pytest.raises(InvalidRequest):
        narrowing(header)
