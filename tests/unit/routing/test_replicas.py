"""Which replica may serve, and which one does."""

from dataclasses import dataclass

import pytest

from moulin.domain.reasons import ReasonCode
from moulin.domain.snapshot import ReplicaView
from moulin.routing.replicas import choose, forbidden_reason, is_permitted


@dataclass(eq=False)
class Load:
    outstanding: int = 0
    served: int = 0
    parallel_requests: int = 2
    suspect_until_s: float = 0.0


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
        ((Load(outstanding=1), Load()), (), 1),
        ((Load(served=5), Load(served=4)), (), 1),
        ((Load(outstanding=2), Load(outstanding=1)), (), 1),
        ((Load(outstanding=2), Load(outstanding=2)), (), None),
        ((Load(suspect_until_s=10.0), Load(outstanding=1)), (), 1),
        ((Load(suspect_until_s=10.0), Load(outstanding=2)), (), 0),
        ((Load(suspect_until_s=4.0), Load(outstanding=1)), (), 0),
        ((Load(outstanding=1, suspect_until_s=9.0), Load(suspect_until_s=9.0)), (), 1),
        ((Load(), Load(outstanding=1)), (0,), 1),
        ((Load(), Load()), (0, 1), None),
    ],
)
def test_choice(loads: tuple[Load, ...], tried: tuple[int, ...], chosen: int | None) -> None:
    found = choose(loads, 5.0, [loads[index] for index in tried])
    assert found is (None if chosen is None else loads[chosen])
