"""Provisional figures of one answer: cost, energy, carbon, as text for headers and comments.

They come from prices and from energy per token as last metered, or as estimated before that, and are
labelled provisional; `x-moulin-energy-class` says which, with the share by which energy may be off. The
receipt is final when its metering interval closes. Exact integers all the way to the decimal point.
"""

from dataclasses import dataclass
from typing import Final

from moulin.domain.snapshot import ReplicaView

_GIGA: Final = 10**9
_MEGA: Final = 10**6


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write figures: with energy and carbon, and where a replica's energy is not known."""

    whole: bytes
    cost_only: bytes


HEADERS: Final = Form(
    b"x-moulin-figures: provisional\r\nx-moulin-cost-eur: %d.%09d\r\n"
    b"x-moulin-energy-j: %d.%06d\r\nx-moulin-co2e-g: %d.%09d\r\n",
    b"x-moulin-figures: provisional\r\nx-moulin-cost-eur: %d.%09d\r\n",
)
COMMENT: Final = Form(
    b": moulin figures=provisional cost-eur=%d.%09d energy-j=%d.%06d co2e-g=%d.%09d\n\n",
    b": moulin figures=provisional cost-eur=%d.%09d\n\n",
)


def energy_note(replica: ReplicaView) -> bytes:
    """Return header lines that say how good a replica's energy figures are; none where there are none.

    >>> energy_note(ReplicaView(
    ...     attempt="a", address="h:1", key="", zone="z", country="FR", country_basis="attested",
    ...     energy_uj_per_token_output=9, energy_class="estimated", energy_uncertainty_ppm=2_000_000)
    ... ).split()
    [b'x-moulin-energy-class:', b'estimated', b'x-moulin-energy-uncertainty:', b'2.00']
    """
    if not (replica.energy_uj_per_token_input or replica.energy_uj_per_token_output):
        return b""
    uncertainty = f"{replica.energy_uncertainty_ppm / _MEGA:.2f}"
    return (
        f"x-moulin-energy-class: {replica.energy_class or 'unknown'}\r\n"
        f"x-moulin-energy-uncertainty: {uncertainty}\r\n"
    ).encode()


def provisional(
    form: Form, replica: ReplicaView, tokens: tuple[int, int], amount_neur: int
) -> bytes:
    """Return the figures of an answer of `tokens` (input, output) in one of the forms above.

    n€ are written as euros, µJ as joules, ng CO2e as grams rounded down. A replica whose energy
    per token is not known yet has a cost only: unknown is not zero.

    >>> replica = ReplicaView(
    ...     attempt="a", address="h:1", key="", zone="z", country="FR", country_basis="attested",
    ...     energy_uj_per_token_input=10, energy_uj_per_token_output=200, carbon_ng_per_j=15_000)
    >>> provisional(COMMENT, replica, (100, 50), 1_500_000_001).split()[3:]
    [b'cost-eur=1.500000001', b'energy-j=0.011000', b'co2e-g=0.000000165']
    """
    energy_uj = (
        tokens[0] * replica.energy_uj_per_token_input
        + tokens[1] * replica.energy_uj_per_token_output
    )
    if not energy_uj:
        return form.cost_only % (amount_neur // _GIGA, amount_neur % _GIGA)
    carbon_ng = energy_uj * replica.carbon_ng_per_j // _MEGA
    return form.whole % (
        amount_neur // _GIGA,
        amount_neur % _GIGA,
        energy_uj // _MEGA,
        energy_uj % _MEGA,
        carbon_ng // _GIGA,
        carbon_ng % _GIGA,
    )
