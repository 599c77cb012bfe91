"""Exact integers and their text forms: n€, mJ, ng CO2e, bytes, milli-CPUs, ns UTC.

Nothing here rounds silently: a text that needs more digits than the unit has is refused.
On the wire, amounts are decimal strings and times RFC 3339 in UTC (DESIGN rule 1).
"""

import functools
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Final

from moulin.domain.errors import InvalidSpec, InvariantViolated, check

NS_PER_S: Final = 1_000_000_000
NEUR_PER_EUR: Final = 1_000_000_000
MJ_PER_J: Final = 1_000
MJ_PER_KWH: Final = 3_600_000_000
NG_PER_G: Final = 1_000_000_000
PPM: Final = 1_000_000

_BYTES_BY_SUFFIX: Final = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_BYTES_MAX: Final = 10**18
_S_BY_SUFFIX: Final = {"": 1, "S": 1, "M": 60, "MIN": 60, "H": 3600, "D": 86400, "W": 604800}
_S_MAX: Final = 10 * 366 * 86400
_QUANTITY: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_bytes(text: str | int) -> int:
    """Read `64GB`, `1.5GiB`, `512MB` or a plain count of bytes.

    Raises `InvalidSpec` for another form, a fraction of a byte, or more than 10**18 bytes.

    >>> parse_bytes("64GB"), parse_bytes("1.5KiB")
    (64000000000, 1536)
    """
    return _parse_quantity(text, _BYTES_BY_SUFFIX, _BYTES_MAX, "memory", "16GB or 16GiB")


def parse_duration_s(text: str | int) -> int:
    """Read `90`, `30s`, `15m`, `6h`, `2d` as seconds.

    Raises `InvalidSpec` for another form, a fraction of a second, or more than ten years.

    >>> parse_duration_s("6h"), parse_duration_s("1.5h")
    (21600, 5400)
    """
    return _parse_quantity(text, _S_BY_SUFFIX, _S_MAX, "duration", "30s, 15m, 6h or 2d")


def parse_cpu_milli(text: str | float) -> int:
    """Read a number of CPUs such as `2` or `0.5` as thousandths of a CPU.

    Raises `InvalidSpec` below a thousandth, above a million CPUs, or for no number.

    >>> parse_cpu_milli("0.5")
    500
    """
    return _scaled(text, 1000, 10**9, "cpus", "2 or 0.5")


def parse_euros(text: str | float) -> int:
    """Read euros such as `12.50` as n€.

    Raises `InvalidSpec` for more than nine decimals, a negative amount, or no number.

    >>> parse_euros("0.000000150")
    150
    """
    return _scaled(text, NEUR_PER_EUR, 10**27, "euros", "12.50")


def format_euros(amount_neur: int) -> str:
    """Return euros exactly, with two to nine decimals.

    >>> format_euros(12_500_000_000), format_euros(-150)
    ('12.50', '-0.00000015')
    """
    return format_scaled(amount_neur, NEUR_PER_EUR, decimals_min=2)


def format_scaled(amount: int, scale: int, *, decimals_min: int = 0) -> str:
    """Return `amount / scale` exactly, where `scale` is a power of ten.

    >>> format_scaled(1500, 1000)
    '1.5'
    """
    digits = len(str(scale)) - 1
    whole, part = divmod(abs(amount), scale)
    decimals = f"{part:0{digits}d}".rstrip("0").ljust(decimals_min, "0") if digits else ""
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def format_time(at_ns: int) -> str:
    """Return RFC 3339 UTC with exactly nine decimals, so that text order is time order.

    >>> format_time(1_700_000_000_000_000_001)
    '2023-11-14T22:13:20.000000001Z'
    """
    second, ns = divmod(at_ns, NS_PER_S)
    return f"{_second_text(second)}.{ns:09d}Z"


@functools.lru_cache(maxsize=4096)  # what is written together happened in the same few seconds
def _second_text(second: int) -> str:
    return f"{_EPOCH + timedelta(seconds=second):%Y-%m-%dT%H:%M:%S}"


def parse_time(text: str) -> int:
    """Read RFC 3339 with up to nine decimals and any offset as ns UTC.

    Raises `InvalidSpec` for another form.

    >>> parse_time("2023-11-14T22:13:20.000000001Z")
    1700000000000000001
    """
    found = re.fullmatch(r"([^.]+?)(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})", text)
    if found is None:
        raise InvalidSpec(
            f"read {text!r} as a time", hint="write RFC 3339, for example 2026-11-22T09:30:00Z"
        )
    try:
        moment = datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00"))
    except ValueError as cause:
        raise InvalidSpec(
            f"read {text!r} as a time", hint="write RFC 3339, for example 2026-11-22T09:30:00Z"
        ) from cause
    since = moment - _EPOCH
    whole_s = since.days * 86400 + since.seconds
    return whole_s * NS_PER_S + int((found[2] or "").ljust(9, "0"))


def share_out(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Split `total` in proportion to `weights`, exactly, by largest remainder.

    Order:  ties go to the earlier weight, so equal inputs give equal shares.
    Cost:   O(n log n). All-zero weights give all-zero shares except a non-zero total, which is a
            bug of the caller (nobody to carry it) and raises `InvariantViolated`.

    >>> share_out(10, (1, 1, 1))
    (4, 3, 3)
    """
    check(total >= 0 and all(w >= 0 for w in weights), "shares need amounts that are not negative")
    mass = sum(weights)
    if mass == 0:
        check(total == 0, "a non-zero total needs at least one weight above zero")
        return tuple(0 for _ in weights)
    shares = [total * w // mass for w in weights]
    left = total - sum(shares)
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % mass), i))
    for i in by_remainder[:left]:
        shares[i] += 1
    check(sum(shares) == total, "shares must add up to the total")
    return tuple(shares)


def divide_round_half_even(numerator: int, denominator: int) -> int:
    """Divide integers, rounding to nearest and halves to even; `denominator` above zero.

    Raises `InvariantViolated` for a denominator that is not.

    >>> [divide_round_half_even(n, 2) for n in (1, 3, -1)]
    [0, 2, 0]
    """
    if denominator <= 0:  # not `check`: prices are worked out four times a request
        raise InvariantViolated("the denominator must be above zero")
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient % 2 == 1):
        quotient += 1
    return quotient


def _parse_quantity(
    text: str | int, factors: dict[str, int], maximum: int, what: str, example: str
) -> int:
    found = _QUANTITY.fullmatch(str(text).strip())
    factor = factors.get(found[2].upper()) if found else None
    if found is None or factor is None or isinstance(text, bool):
        raise InvalidSpec(f"read {text!r} as a {what}", hint=f"write for example {example}")
    value = Decimal(found[1]) * factor
    if value != value.to_integral_value() or value > maximum:
        raise InvalidSpec(
            f"read {text!r} as a {what}: it must be a whole number up to {maximum}",
            hint=f"write for example {example}",
        )
    return int(value)


def _scaled(text: str | float, scale: int, maximum: int, what: str, example: str) -> int:
    if isinstance(text, bool):
        raise InvalidSpec(f"read {text!r} as {what}", hint=f"write for example {example}")
    try:
        value = Decimal(str(text)) * scale
    except InvalidOperation as cause:
        raise InvalidSpec(f"read {text!r} as {what}", hint=f"write {example}") from cause
    if not value.is_finite() or value != value.to_integral_value() or not 0 <= value <= maximum:
        raise InvalidSpec(
            f"read {text!r} as {what}: out of range or too many decimals", hint=f"write {example}"
        )
    return int(value)
