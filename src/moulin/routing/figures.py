"""Provisional figures of one answer, as text for headers: cost, energy, carbon.

They come from prices and from the model of the machine class, and are labelled provisional; the
receipt is final when its metering interval closes. Exact integers all the way to the decimal point.
"""

from typing import Final, NamedTuple

from moulin.domain.snapshot import ReplicaView

_GIGA: Final = 10**9
_MEGA: Final = 10**6


class Figures(NamedTuple):
    """Decimal text of n€ as euros, µJ as joules, ng CO2e as grams (rounded down)."""

    cost_eur: str
    energy_j: str
    carbon_g: str


def provisional(
    replica: ReplicaView, tokens_input: int, tokens_output: int, amount_neur: int
) -> Figures:
    """Return the figures of an answer.

    >>> from moulin.domain.snapshot import ReplicaView
    >>> replica = ReplicaView(
    ...     attempt="a", address="h:1", key="", zone="z", country="FR", country_basis="attested",
    ...     energy_uj_per_token_input=10, energy_uj_per_token_output=200, carbon_ng_per_j=15_000)
    >>> provisional(replica, 100, 50, 1_500_000_001)
    Figures(cost_eur='1.500000001', energy_j='0.011000', carbon_g='0.000000165')
    """
    energy_uj = (
        tokens_input * replica.energy_uj_per_token_input
        + tokens_output * replica.energy_uj_per_token_output
    )
    carbon_ng = energy_uj * replica.carbon_ng_per_j // _MEGA
    return Figures(
        f"{amount_neur // _GIGA}.{amount_neur % _GIGA:09d}",
        f"{energy_uj // _MEGA}.{energy_uj % _MEGA:06d}",
        f"{carbon_ng // _GIGA}.{carbon_ng % _GIGA:09d}",
    )
