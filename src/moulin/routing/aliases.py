"""What a name that stands for other models means: its target, and what is said of its end.

It decides which target serves one request, when a name has stopped, and the header lines that warn
before. It never looks at replicas: a target is an endpoint the caller may use.

Source: RFC 9745 (Deprecation), RFC 8594 (Sunset), RFC 8288 (Link).
"""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final

from moulin.domain.snapshot import AliasView
from moulin.domain.units import NS_PER_S
from moulin.routing.canary import pick

SERVED_BY: Final = b"x-moulin-model"


def target_of(alias: AliasView, usable: Collection[str], identifier: bytes) -> str | None:
    """Return the target that serves a request, None when no target with a weight is usable.

    What a target that is gone had is shared by the others, in proportion.
    """
    targets = [
        (target.model, target.weight)
        for target in alias.targets
        if target.weight > 0 and target.model in usable
    ]
    return pick(targets, identifier) if targets else None


def is_over(alias: AliasView, now_ns: int) -> bool:
    """Whether the name has stopped."""
    return 0 < alias.sunset_at_ns <= now_ns


def successor_of(alias: AliasView) -> str:
    """Return the name to use instead: the target with the most weight, the first of equals."""
    return max(alias.targets, key=lambda target: target.weight).model if alias.targets else ""


def headers_of(alias: AliasView | None, model: str) -> bytes:
    """Return the header lines of an answer that `model` gave in the name of an alias or a fallback."""
    lines = [b"%b: %b" % (SERVED_BY, model.encode())]
    if alias is not None and alias.deprecated_at_ns:
        lines.append(b"deprecation: @%d" % (alias.deprecated_at_ns // NS_PER_S))
        lines.append(
            b'link: </v1/models/%b>; rel="successor-version"' % successor_of(alias).encode()
        )
    if alias is not None and alias.sunset_at_ns:
        moment = datetime.fromtimestamp(alias.sunset_at_ns // NS_PER_S, UTC)
        lines.append(f"sunset: {_http_date(moment)}".encode())
    return b"".join(b"%b\r\n" % line for line in lines)


_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    *("Jan", "Feb", "Mar", "Apr", "May", "Jun"),
    *("Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
)


def _http_date(moment: datetime) -> str:
    """Return the one form of a date that HTTP has, in no locale's words."""
    return (
        f"{_DAYS[moment.weekday()]}, {moment.day:02} {_MONTHS[moment.month - 1]} {moment.year} "
        f"{moment:%H:%M:%S} GMT"
    )
