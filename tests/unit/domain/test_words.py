"""What people read: amounts in units they would choose, never rounded to nothing."""

import pytest

from moulin.domain.words import carbon, cpus, duration, energy, euros, memory, moment


@pytest.mark.parametrize(
    ("show", "amount", "text"),
    [
        (euros, 0, "0.00 €"),
        (euros, 1, "0.000000001 €"),
        (euros, 999, "0.000000999 €"),
        (euros, 12_345, "0.000012 €"),
        (euros, 12_500_000_000, "12.50 €"),
        (euros, -12_345, "-0.000012 €"),
        (energy, 0, "0 mJ"),
        (energy, 1_500, "1.5 J"),
        (energy, 7_200_000_000, "2 kWh"),
        (carbon, 12, "12 ng CO2e"),
        (carbon, 1_500_000_000, "1.5 g CO2e"),
        (memory, 64_000_000_000, "64 GB"),
        (memory, 12, "12 B"),
        (cpus, 500, "0.5"),
        (duration, 3_200_000_000, "3.2s"),
        (duration, 62_000_000_000, "1m2s"),
        (duration, 3_725_000_000_000, "1h2m5s"),
        (moment, 0, "-"),
        (moment, 1_700_000_000_000_000_001, "2023-11-14 22:13:20Z"),
    ],
    ids=range(19),
)
def test_amounts(show, amount, text):
    assert show(amount) == text
