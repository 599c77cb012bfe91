"""What a gateway counts against limits: rates over the last minute, and allowances as escrow.

It decides whether a request may go on under the rates of its key, project and organisation, holds
what it may use of every allowance before its money, and settles all of it when the request ends,
however it ends. Limits live as long as a snapshot; counts of a minute outlive the process, which is
told what its predecessors let through. A key without any limit has no guard, and its requests never
come here.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from moulin.domain.errors import MoulinError, RateLimited
from moulin.domain.limits import (
    AllowanceUnit,
    GatewayShare,
    LimitScope,
    RateLimit,
    parts_of,
    slices_of,
)
from moulin.domain.reasons import Reason, ReasonCode, sentence
from moulin.domain.snapshot import KeyView, ProjectView
from moulin.domain.units import NS_PER_S
from moulin.gateway.accounts import Account
from moulin.gateway.recall import Counted
from moulin.gateway.users import Crowd, UserAccounts
from moulin.routing.rates import NEVER_S, SLOTS, MinuteCount, duration_text

RETRY_SOON_S: Final = 1
_REQUESTS: Final = "requests a minute"
_TOKENS: Final = "tokens a minute"
_AT_ONCE: Final = "requests at once"


class Guarded(Protocol):
    """A request that may go on only within its limits."""

    held_neur: int

    def within_limits(self) -> None:
        """Go on: every allowance holds what the request may use."""
        ...

    def refused(self, error: MoulinError, reason: Reason | None) -> None:
        """Give up: an allowance has too little left."""
        ...


class Gauge:
    """One owner's rate at this gateway: its limits as they are now, its counts as they were."""

    __slots__ = ("limits", "owner", "rate", "requests", "running", "scope", "tokens")

    def __init__(self, scope: LimitScope, owner: str) -> None:
        self.scope = scope
        self.owner = owner
        self.rate = RateLimit()
        self.limits = RateLimit()
        """The part of the rate that is this gateway's."""
        self.requests = MinuteCount()
        self.tokens = MinuteCount()
        self.running = 0

    def divide(self, slices: int) -> None:
        """Take over the slices of the rate that this gateway may use."""
        self.limits = RateLimit(
            requests_per_minute=slices_of(self.rate.requests_per_minute, slices),
            tokens_per_minute=slices_of(self.rate.tokens_per_minute, slices),
            concurrency=slices_of(self.rate.concurrency, slices),
        )

    def refusal(self, tokens: int, second: int) -> RateLimited | None:
        """Return why one more request of so many tokens does not fit now, None when it does."""
        rate, here = self.rate, self.limits
        if rate.concurrency and self.running >= here.concurrency:
            left = here.concurrency - self.running
            return self._refuse((_AT_ONCE, rate.concurrency, left, 1), RETRY_SOON_S)
        for what, limit, part, count, wanted in (
            (_REQUESTS, rate.requests_per_minute, here.requests_per_minute, self.requests, 1),
            (_TOKENS, rate.tokens_per_minute, here.tokens_per_minute, self.tokens, tokens),
        ):
            if limit and count.room(part, second) < wanted:
                wait_s = count.wait_s(wanted, part, second)
                return self._refuse((what, limit, count.room(part, second), wanted), wait_s)
        return None

    def _refuse(self, figures: tuple[str, int, int, int], wait_s: int) -> RateLimited:
        what, limit, left, wanted = figures
        reason = Reason(
            code=ReasonCode.RATE_EXCEEDED,
            parameters={
                "scope": self.scope.value,
                "owner": self.owner,
                "limit": str(limit),
                "what": what,
                "left": str(max(left, 0)),
                "wanted": str(wanted),
            },
        )
        if wait_s == NEVER_S and self.limits != self.rate:
            wait_s = RETRY_SOON_S  # another gateway has room for it, or this one will
        if wait_s == NEVER_S:
            return RateLimited(sentence(reason), hint="ask for a smaller max_tokens")
        hint = "try again when Retry-After has passed"
        return RateLimited(sentence(reason), hint=hint, details={"retry_after_s": max(wait_s, 1)})


class Guard:
    """All the limits of one key: gauges widest first, the accounts of its allowances, its users."""

    __slots__ = ("crowd", "gauges", "purses", "quotas")

    def __init__(
        self,
        quotas: "Quotas",
        gauges: tuple[Gauge, ...],
        purses: tuple[Account, ...],
        crowd: Crowd | None,
    ) -> None:
        self.quotas = quotas
        self.gauges = gauges
        self.purses = purses
        self.crowd = crowd

    def enter(self, request: Guarded, tokens: int, purses: tuple[Account, ...] = ()) -> "Pass":
        """Count a request that may use so many tokens; its pass says whether it may go on.

        `purses` are the allowances of its user, beyond those of its key.
        """
        second = int(self.quotas.loop.time())
        for gauge in self.gauges:
            refusal = gauge.refusal(tokens, second)
            if refusal is not None:
                return Pass(self, request, (tokens, second), refusal=refusal)
        for gauge in self.gauges:
            gauge.running += 1
            gauge.requests.add(1, second)
            gauge.tokens.add(tokens, second)
        if self.gauges:
            self.quotas.limited_at_s = second
        return Pass(self, request, (tokens, second), self.purses + purses)


class Part:
    """What one request holds of one allowance."""

    __slots__ = ("account", "held_neur", "whole")

    def __init__(self, whole: "Pass", account: Account, held: int) -> None:
        self.whole = whole
        self.account = account
        self.held_neur = held

    def funded(self) -> None:
        """Go on to the next allowance."""
        self.whole.funded(self)

    def refused(self, error: MoulinError, reason: Reason | None) -> None:
        """Let the request give up."""
        self.whole.refused(error, reason)


class Pass:
    """One request's way through its limits; `leave` ends it, once."""

    __slots__ = (
        "_guard", "_held", "_purses", "_request", "_second", "_tokens", "_waiting", "refusal",
    )  # fmt: skip

    def __init__(
        self,
        guard: Guard,
        request: Guarded,
        counted: tuple[int, int],
        purses: tuple[Account, ...] = (),
        refusal: RateLimited | None = None,
    ) -> None:
        self._guard: Guard | None = guard
        self._purses = purses
        self._request = request
        self._tokens, self._second = counted
        self._held: list[Part] = []
        self._waiting: Part | None = None
        self.refusal = refusal

    def hold(self) -> None:
        """Hold of every allowance in turn what the request may use, then let it go on."""
        if self._guard is None:
            return  # the client left while an allowance was asked for
        if len(self._held) == len(self._purses):
            self._request.within_limits()
            return
        account = self._purses[len(self._held)]
        is_tokens = parts_of(account.project)[2] is AllowanceUnit.TOKENS
        held = self._tokens if is_tokens else self._request.held_neur
        self._waiting = Part(self, account, held)
        account.pay(self._waiting)

    def funded(self, part: Part) -> None:
        """Take note that an allowance holds its part."""
        self._held.append(part)
        self._waiting = None
        self.hold()

    def refused(self, error: MoulinError, reason: Reason | None) -> None:
        """Give up for want of an allowance."""
        self._waiting = None
        self._request.refused(error, reason)

    def leave(self, tokens: int, cost_neur: int) -> None:
        """Settle what was held by what was used, and free the place; more than once is once."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        if self.refusal is None:
            for gauge in guard.gauges:
                gauge.running -= 1
                gauge.tokens.give_back(max(0, self._tokens - tokens), self._second)
        for part in self._held:
            is_tokens = parts_of(part.account.project)[2] is AllowanceUnit.TOKENS
            part.account.escrow.settle(part.held_neur, tokens if is_tokens else cost_neur)
        if self._waiting is not None:
            self._waiting.account.forget(self._waiting)

    def headers(self) -> bytes:
        """Return OpenAI's rate-limit headers, of the limit with the least left."""
        guard = self._guard
        return rate_headers(guard.gauges, self._second) if guard is not None else b""


class Quotas:
    """Every count of this process, and the share of each rate that is this gateway's."""

    def __init__(
        self,
        open_account: Callable[[str], Account],
        users: UserAccounts,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.loop = loop
        self._users = users
        self.share = GatewayShare(slices=0, version=0)
        self.limited_at_s = -1
        self._open_account = open_account
        self._gauges: dict[tuple[LimitScope, str], Gauge] = {}
        self._past: dict[tuple[LimitScope, str], list[tuple[int, Counted]]] = {}
        self._past_until_s = 0

    def recall(self, counts: Iterable[Counted], keys: Iterable[KeyView], now_ns: int) -> None:
        """Count what earlier processes let through; keys of one line are counted as one."""
        lines = {key.id: key.line or key.id for key in keys}
        now = int(self.loop.time())
        self._past_until_s = now + SLOTS
        for each in counts:
            then = now - max(0, (now_ns - each.at_ns) // NS_PER_S)
            for owner in (
                (LimitScope.ORGANISATION, each.organisation),
                (LimitScope.PROJECT, each.project),
                (LimitScope.KEY, lines.get(each.key, each.key)),
            ):
                self._past.setdefault(owner, []).append((then, each))
            # Told to the leader: slices that this gateway leaves may be in their last minute.
            self.limited_at_s = max(self.limited_at_s, then, 0)

    def forget_past(self) -> None:
        """Let go of what nobody asked for while it counted."""
        if self._past and self.loop.time() > self._past_until_s:
            self._past.clear()

    def guard(self, key: KeyView, project: ProjectView, pepper: bytes) -> Guard | None:
        """Return what bounds a key or its users under this snapshot, None when nothing does."""
        gauges = tuple(
            self._gauge(scope, owner, rate)
            for scope, owner, rate in (
                (LimitScope.ORGANISATION, key.organisation, project.organisation_rate),
                (LimitScope.PROJECT, key.project, project.rate),
                (LimitScope.KEY, key.line or key.id, key.rate),
            )
            if rate.is_set
        )
        purses = tuple(map(self._open_account, key.allowances))
        if key.users is not None:
            crowd = Crowd(key.users, key.project, pepper, self._users)
            return Guard(self, gauges, purses, crowd)
        return Guard(self, gauges, purses, None) if gauges or purses else None

    def take(self, share: GatewayShare | None) -> None:
        """Keep to the share that the leader says, unless it is older than the one in force."""
        if share is not None and share.version >= self.share.version and share != self.share:
            self.share = share
            self._divide()

    def drop_share(self) -> None:
        """Use no part of any rate: the leader was not heard so long that others may have it."""
        if self.share.slices:
            self.share = GatewayShare(slices=0, version=self.share.version)
            self._divide()

    def limited_ago_s(self) -> int:
        """Return how long ago a request was let through under a rate, -1 for never."""
        if self.limited_at_s < 0:
            return -1
        return max(0, int(self.loop.time()) - self.limited_at_s)

    def _gauge(self, scope: LimitScope, owner: str, rate: RateLimit) -> Gauge:
        gauge = self._gauges.get((scope, owner))
        if gauge is None:
            gauge = self._gauges[(scope, owner)] = Gauge(scope, owner)
            now = int(self.loop.time())
            for then, counted in self._past.pop((scope, owner), ()):
                gauge.requests.recall(counted.requests, then, now)
                gauge.tokens.recall(counted.tokens, then, now)
        if gauge.rate != rate:
            gauge.rate = rate
            gauge.divide(self.share.slices)
        return gauge

    def _divide(self) -> None:
        for gauge in self._gauges.values():
            gauge.divide(self.share.slices)


def rate_headers(gauges: Sequence[Gauge], second: int) -> bytes:
    """Return `x-ratelimit-*` lines for requests and tokens, as far as they are limited."""
    lines = b""
    for name, field in (("requests", "requests_per_minute"), ("tokens", "tokens_per_minute")):
        bound = [gauge for gauge in gauges if getattr(gauge.rate, field)]
        if not bound:
            continue
        rooms = [
            (getattr(gauge, name).room(getattr(gauge.limits, field), second), index)
            for index, gauge in enumerate(bound)
        ]
        room, index = min(rooms)
        gauge = bound[index]
        lines += (
            f"x-ratelimit-limit-{name}: {getattr(gauge.rate, field)}\r\n"
            f"x-ratelimit-remaining-{name}: {max(0, room)}\r\n"
            f"x-ratelimit-reset-{name}: {duration_text(getattr(gauge, name).reset_s(second))}\r\n"
        ).encode()
    return lines
