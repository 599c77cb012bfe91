"""Amounts in words for people: rounded, with a unit; programs get the exact integers instead.

It decides units and digits, in one place for every edge that speaks to people.
"""

from typing import Final

from moulin.domain.units import divide_round_half_even, format_euros, format_time

MICRO_NEUR: Final = 1_000
_ENERGY: Final = (("kWh", 3_600_000_000), ("kJ", 1_000_000), ("J", 1_000))
_CARBON: Final = (("kg", 10**12), ("g", 10**9), ("mg", 10**6), ("µg", 10**3))
_MEMORY: Final = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def euros(amount_neur: int) -> str:
    """Return an amount to the micro-euro; a smaller one exactly.

    >>> euros(2_500_000_400), euros(150)
    ('2.50 €', '0.00000015 €')
    """
    if 0 < abs(amount_neur) < MICRO_NEUR:
        return f"{format_euros(amount_neur)} €"
    return f"{format_euros(divide_round_half_even(amount_neur, MICRO_NEUR) * MICRO_NEUR)} €"


def energy(amount_mj: int) -> str:
    """Return energy in the unit that people would choose.

    >>> energy(1500), energy(7_200_000_000)
    ('1.5 J', '2 kWh')
    """
    return _scaled(amount_mj, _ENERGY, "mJ")


def carbon(amount_ng: int) -> str:
    """Return a mass of CO2e in the unit that people would choose.

    >>> carbon(2_500_000)
    '2.5 mg CO2e'
    """
    return f"{_scaled(amount_ng, _CARBON, 'ng')} CO2e"


def memory(amount_bytes: int) -> str:
    """Return bytes in decimal units.

    >>> memory(64_000_000_000), memory(1500)
    ('64 GB', '1.5 kB')
    """
    return _scaled(amount_bytes, _MEMORY, "B")


def cpus(amount_milli: int) -> str:
    """Return milli-CPUs as CPUs."""
    return f"{amount_milli / 1000:g}"


def duration(amount_ns: int) -> str:
    """Return a span as people say it.

    >>> duration(3_200_000_000), duration(3_725_000_000_000)
    ('3.2s', '1h2m5s')
    """
    seconds = amount_ns / 1_000_000_000
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


def moment(at_ns: int) -> str:
    """Return a time in UTC to the second, a dash for one that has not come."""
    return f"{format_time(at_ns)[:19].replace('T', ' ')}Z" if at_ns else "-"


def _scaled(amount: int, units: tuple[tuple[str, int], ...], smallest: str) -> str:
    for unit, size in units:
        if amount >= size:
            return f"{amount / size:.4g} {unit}"
    return f"{amount} {smallest}"
