"""What callers may use: rates, and allowances of money or tokens that renew with a period.

An organisation, a project and a key may each have both, and each user of a project or a key an
allowance. The names of live allowances cross the wire; who a name belongs to is readable from it. This module says what limits are, never whether one
is met.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from moulin.domain.units import NS_PER_S, format_euros
from moulin.domain.wire import WIDE

SLICES: Final = 48
"""A rate is divided among gateways by slices; 48 divides evenly by 1, 2, 3, 4, 6, 8, 12 and 16."""
ALL_SLICES: Final = (1 << SLICES) - 1
USERS_MAX: Final = 100_000
"""Users of one project, or one key, with an allowance of their own at one time."""
NAMELESS: Final = "usr_none"
"""Who sends no name: all such requests are one user's."""
USER_LABEL: Final = "user"
"""A key with this label is one user's, whatever its requests say."""
USER_CHARACTERS_MAX: Final = 256
_UNIT_MARK: Final = "#"
_SCOPE_MARK: Final = ":"
_USER_MARK: Final = "/"


class Period(StrEnum):
    """When an allowance is whole again: never, or at midnight UTC of a day, Monday or first day."""

    EVER = "ever"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class AllowanceUnit(StrEnum):
    """What an allowance counts: EUR in n€, or TOKENS of prompts and answers together."""

    EUR = "eur"
    TOKENS = "tokens"


class LimitScope(StrEnum):
    """Whom a limit belongs to, widest first; the last two are each user of a project or a key."""

    ORGANISATION = "organisation"
    PROJECT = "project"
    KEY = "key"
    PROJECT_USER = "project_user"
    KEY_USER = "key_user"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """How fast models may be called; 0 means no limit.

    In any 60 seconds at most `requests_per_minute` are admitted and at most `tokens_per_minute`
    tokens, a running request counting with the most it may use; `concurrency` may run at once.
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0

    @property
    def is_set(self) -> bool:
        """Whether anything is limited."""
        return bool(self.requests_per_minute or self.tokens_per_minute or self.concurrency)


NO_RATE: Final = RateLimit()
USER_SCOPES: Final = (LimitScope.PROJECT_USER, LimitScope.KEY_USER)
_USER_PREFIXES: Final = tuple(f"{scope.value}{_SCOPE_MARK}" for scope in USER_SCOPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What model calls may use in each period; -1 means no limit.

    `alerts_ppm` are fractions of the limit, in millionths, at which the operator's webhook is told.
    """

    amount_neur: int = -1
    tokens: int = -1
    period: Period = Period.EVER
    alerts_ppm: tuple[int, ...] = ()

    @property
    def is_set(self) -> bool:
        """Whether anything is limited."""
        return self.amount_neur >= 0 or self.tokens >= 0

    def limits(self) -> Iterator[tuple[AllowanceUnit, int]]:
        """Yield each unit that is limited with its limit."""
        if self.amount_neur >= 0:
            yield AllowanceUnit.EUR, self.amount_neur
        if self.tokens >= 0:
            yield AllowanceUnit.TOKENS, self.tokens


NO_ALLOWANCE: Final = Allowance()


class UserNames(StrEnum):
    """What is recorded of a user's name: a keyed hash of it, or the name itself."""

    HASHED = "hashed"
    STORED = "stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRule:
    """Whether a project's users are told apart, and what each of them may use."""

    is_counted: bool = False
    names: UserNames = UserNames.HASHED
    allowance: Allowance = field(default_factory=Allowance)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayShare:
    """Which slices of every rate limit one gateway may use, as bits; a larger version is newer."""

    slices: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowanceView:
    """How one allowance stands; amounts are n€ or tokens, as `unit` says.

    `used` is what ended requests cost in the present period and `held` what gateways were handed
    for the requests they serve; `used` above `limit` is debt and is kept into the next period.
    """

    scope: LimitScope
    name: str
    unit: AllowanceUnit
    limit: int = field(metadata=WIDE)
    used: int = field(metadata=WIDE)
    held: int = field(metadata=WIDE)
    period: Period
    start_ns: int
    resets_at_ns: int = 0
    alerts_ppm: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowanceNotice:
    """What a webhook is told: an allowance has reached a fraction of its limit.

    `id` is the sequence of the event; `url` is what the operator declared, empty when nothing is.
    """

    id: int
    at_ns: int
    organisation: str
    project: str
    threshold_ppm: int
    allowance: AllowanceView
    url: str = field(default="", repr=False)


def allowance_name(scope: LimitScope, owner: str, unit: AllowanceUnit) -> str:
    """Return the name of a live allowance; no project can be called so.

    >>> allowance_name(LimitScope.KEY, "key_1", AllowanceUnit.EUR)
    'key:key_1#eur'
    """
    return f"{scope.value}{_SCOPE_MARK}{owner}{_UNIT_MARK}{unit.value}"


def is_allowance(name: str) -> bool:
    """Say whether an account's name is an allowance's rather than a project's."""
    return _UNIT_MARK in name


def parts_of(name: str) -> tuple[LimitScope, str, AllowanceUnit]:
    """Return whose allowance a name is and in what unit; raises `ValueError` for another name.

    >>> parts_of("organisation:uni#tokens")[1]
    'uni'
    """
    scope, _, rest = name.partition(_SCOPE_MARK)
    owner, _, unit = rest.rpartition(_UNIT_MARK)
    return LimitScope(scope), owner, AllowanceUnit(unit)


def user_allowance(name: str, user: str) -> str:
    """Return the name of one user's allowance; `name` is the one for nobody, with an empty user.

    >>> user_allowance("project_user:lab/#eur", "usr_1")
    'project_user:lab/usr_1#eur'
    """
    owner, _, unit = name.rpartition(_UNIT_MARK)
    return f"{owner}{user}{_UNIT_MARK}{unit}"


def every_users(scope: LimitScope, owner: str, unit: AllowanceUnit) -> str:
    """Return the name of a user's allowance without the user.

    >>> every_users(LimitScope.KEY_USER, "key_1", AllowanceUnit.TOKENS)
    'key_user:key_1/#tokens'
    """
    return allowance_name(scope, f"{owner}{_USER_MARK}", unit)


def is_users(name: str) -> bool:
    """Say whether the name of an account is a user's allowance."""
    return name.startswith(_USER_PREFIXES)


def user_parts(owner: str) -> tuple[str, str]:
    """Return of an owner that is a user whose user it is, and the user.

    >>> user_parts("lab/usr_1")
    ('lab', 'usr_1')
    """
    declared_by, _, user = owner.partition(_USER_MARK)
    return declared_by, user


def amount_text(name: str, amount: int) -> str:
    """Return an amount of the account `name` with its unit, for people."""
    if is_allowance(name) and parts_of(name)[2] is AllowanceUnit.TOKENS:
        return f"{amount} tokens"
    return f"{format_euros(amount)} EUR"


def period_of(period: Period, at_ns: int) -> tuple[int, int]:
    """Return start and end of the period that holds `at_ns`; (0, 0) for one that never ends.

    >>> period_of(Period.DAY, 86_400 * NS_PER_S + 5)
    (86400000000000, 172800000000000)
    """
    if period is Period.EVER:
        return 0, 0
    day = datetime.fromtimestamp(at_ns // NS_PER_S, UTC).replace(hour=0, minute=0, second=0)
    if period is Period.DAY:
        return _span(day, day + timedelta(days=1))
    if period is Period.WEEK:
        monday = day - timedelta(days=day.weekday())
        return _span(monday, monday + timedelta(days=7))
    first = day.replace(day=1)
    return _span(first, (first + timedelta(days=32)).replace(day=1))


def slices_of(limit: int, slices: int) -> int:
    """Return how much of `limit` the slices are; disjoint slices never add up to more than it.

    >>> slices_of(10, ALL_SLICES)
    10
    """
    if slices == ALL_SLICES:
        return limit
    return sum(
        (index + 1) * limit // SLICES - index * limit // SLICES
        for index in range(SLICES)
        if slices >> index & 1
    )


def _span(start: datetime, end: datetime) -> tuple[int, int]:
    return int(start.timestamp()) * NS_PER_S, int(end.timestamp()) * NS_PER_S
