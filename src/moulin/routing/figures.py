"""Provisional figures of one answer: cost, energy, carbon, as text for headers and comments.

They come from prices and from energy per token as last metered, or as estimated before that, and are
labelled provisional; `x-moulin-energy-class` says which, with the share by which energy may be off. The
receipt is final when its metering interval closes. Exact integers all the way to the decimal point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moulin.domain.snapshot import ReplicaView

_GIGA: Final = 10**9
_MEGA: Final = 10**6
_UJ_PER_KWH: Final = 3_600_000 * _MEGA
_NG_PER_KG: Final = 10**12


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


def usage_figures(
    replica: ReplicaView, tokens: tuple[int, int], amount_neur: int
) -> dict[str, object]:
    """Return cost and carbon of an answer in the form in which OpenGateLLM states them in `usage`.

    Euros, kilowatt-hours and kilograms of CO2e, as `provisional` has them. The least and the most are
    what the uncertainty leaves: by a share of the figure, or, from a whole one on, by a factor. What
    is not known is null, and `reason` says why; it is never 0.

    >>> replica = ReplicaView(
    ...     attempt="a", address="h:1", key="", zone="z", country="FR", country_basis="attested",
    ...     energy_uj_per_token_output=7_200_000, energy_class="E", energy_uncertainty_ppm=500_000)
    >>> found = usage_figures(replica, (9, 1), 15_000)
    >>> found["cost"], found["carbon"]["kWh"], found["carbon"]["kgCO2eq"]["min"]
    (1.5e-05, {'min': 1e-06, 'max': 3e-06}, None)
    """
    energy_uj = (
        tokens[0] * replica.energy_uj_per_token_input
        + tokens[1] * replica.energy_uj_per_token_output
    )
    carbon_ng = energy_uj * replica.carbon_ng_per_j // _MEGA
    reason = None
    if not energy_uj:
        reason = "nobody has measured or stated the power of the machine that served it"
    elif not carbon_ng:
        reason = f"nobody has stated the carbon intensity of zone {replica.zone}"
    return {
        "cost": amount_neur / _GIGA,
        "carbon": {
            "kWh": _range(energy_uj / _UJ_PER_KWH, replica.energy_uncertainty_ppm),
            "kgCO2eq": _range(carbon_ng / _NG_PER_KG, replica.energy_uncertainty_ppm),
            "class": replica.energy_class or None,
            "reason": reason,
        },
    }


def sum_figures(usages: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Return the figures of several usages as one; of what one does not know, nothing is known."""
    first = usages[0]["carbon"]
    parts = [usage["carbon"] for usage in usages]
    return {
        "cost": sum(usage["cost"] for usage in usages),
        "carbon": {
            **{unit: _summed([part[unit] for part in parts]) for unit in ("kWh", "kgCO2eq")},
            "class": max((part["class"] or "" for part in parts), key=_rank) or None,
            "reason": next((part["reason"] for part in parts if part["reason"]), first["reason"]),
        },
    }


def _rank(word: str) -> tuple[int, str]:
    """Order the classes from A to E and `estimated`, the least certain last."""
    return len(word), word


def _summed(ranges: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for end in ("min", "max"):
        known = [each[end] for each in ranges]
        amounts = [amount for amount in known if amount is not None]
        found[end] = sum(amounts) if len(amounts) == len(known) else None
    return found


def _range(amount: float, uncertainty_ppm: int) -> dict[str, float | None]:
    if not amount:
        return {"min": None, "max": None}
    share = uncertainty_ppm / _MEGA
    least = amount * (1 - share) if share < 1 else amount / (1 + share)
    return {"min": least, "max": amount * (1 + share)}


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
