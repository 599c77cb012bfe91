"""How people write limits: in an operator file and in flags; both follow the same rules.

    limits: {requests_per_minute: 600, tokens_per_minute: 200k, concurrency: 50}
    allowance: {euros: 250, tokens: 50M, per: month, alerts: [50%, 80%, 100%]}
    per_user: {euros: 2.00, per: month, alerts: [100%], names: hashed}
    webhook: https://alerts.example.org/moulin

It decides which words and amounts are acceptable, and which addresses may be told: an operator's,
stated here, are the only ones that are ever called.
"""

import re
from typing import Any, Final
from urllib.parse import urlsplit

from moulin.domain.errors import InvalidSpec
from moulin.domain.limits import Allowance, Period, RateLimit, UserNames, UserRule
from moulin.domain.section import Keys, Section, shown
from moulin.domain.units import PPM, parse_euros

LIMIT_KEYS: Final = Keys(("requests_per_minute", "tokens_per_minute", "concurrency"))
ALLOWANCE_KEYS: Final = Keys(("euros", "tokens", "per", "alerts"))
PER_USER_KEYS: Final = Keys(("euros", "tokens", "per", "alerts", "names"))
COUNT_MAX: Final = 10**15
ALERTS_MAX: Final = 10
_COUNT: Final = re.compile(r"([0-9]{1,15})\s*([kMG]?)")
_SCALE: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_PERCENT: Final = re.compile(r"([0-9]{1,3})\s*%")


def parse_count(written: Any) -> int:
    """Read `600`, `200k`, `50M` or `1G`; raises `InvalidSpec` for another form.

    >>> parse_count("200k")
    200000
    """
    found = _COUNT.fullmatch(str(written).strip())
    value = int(found[1]) * _SCALE[found[2]] if found else COUNT_MAX + 1
    if value > COUNT_MAX:
        raise InvalidSpec(f"read {shown(written)} as a number", hint="write for example 600 or 50M")
    return value


def parse_fraction_ppm(written: str) -> int:
    """Read `80%` as millionths; raises `InvalidSpec` for another form and for nothing.

    >>> parse_fraction_ppm("80%")
    800000
    """
    found = _PERCENT.fullmatch(written.strip())
    value = int(found[1]) * PPM // 100 if found else 0
    if not value:
        raise InvalidSpec(f"read {shown(written)} as a fraction", hint="write for example 80%")
    return value


def read_rate(item: Section, key: str = "limits") -> RateLimit:
    """Return the rate under `key`; raises `InvalidSpec` with the path of what is wrong."""
    limits = item.child(key, LIMIT_KEYS)
    return RateLimit(
        requests_per_minute=limits.measure("requests_per_minute", parse_count, 0, minimum=1),
        tokens_per_minute=limits.measure("tokens_per_minute", parse_count, 0, minimum=1),
        concurrency=limits.measure("concurrency", parse_count, 0, minimum=1),
    )


def read_allowance(item: Section, key: str = "allowance") -> Allowance:
    """Return the allowance under `key`; raises `InvalidSpec` with the path of what is wrong."""
    return _allowance(item.child(key, ALLOWANCE_KEYS))


def read_user_rule(item: Section, key: str = "per_user") -> UserRule:
    """Return what is declared of a project's users; without it they are not told apart.

    Raises `InvalidSpec` with the path of what is wrong.
    """
    found = item.child(key, PER_USER_KEYS)
    return UserRule(
        is_counted=item.body.get(key) is not None,
        names=found.word("names", UserNames, UserNames.HASHED),
        allowance=_allowance(found),
    )


def _allowance(found: Section) -> Allowance:
    return Allowance(
        amount_neur=found.measure("euros", parse_euros, -1),
        tokens=found.measure("tokens", parse_count, -1),
        period=found.word("per", Period, Period.EVER),
        alerts_ppm=read_alerts(found),
    )


def read_alerts(found: Section) -> tuple[int, ...]:
    """Return the fractions under `alerts`, in order."""
    written = found.texts("alerts", items_max=ALERTS_MAX)
    inner = Section(found.origin, found.at("alerts"), {str(i): t for i, t in enumerate(written)})
    return tuple(sorted({inner.measure(place, parse_fraction_ppm, 0) for place in inner.body}))


def read_webhook(item: Section, key: str = "webhook") -> str:
    """Return the address under `key`: http or https with a host, without a user or a fragment.

    Raises `InvalidSpec` for any other.
    """
    url = item.text(key)
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        item.refuse(key, f"{shown(url)} is not an address", "write https://HOST/PATH")
    is_plain = url.isascii() and url.isprintable() and " " not in url
    has_place = parts.scheme in ("http", "https") and bool(parts.hostname) and port_is_valid
    if not (is_plain and has_place) or parts.username or parts.password or parts.fragment:
        item.refuse(key, f"{shown(url)} is not an address to call", "write https://HOST/PATH")
    return url
