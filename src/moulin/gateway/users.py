"""Users of keys whose users have allowances: an account for each that is active, and no more.

It decides which user a request is for, opens their accounts when they come and closes them when they
have been quiet: the leader then takes back whatever was granted, and nothing is kept of them here.
Nobody's name leaves this process; what is recorded is what `moulin.identity.users` makes of it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Final

from moulin.domain.errors import Unavailable
from moulin.domain.limits import user_allowance
from moulin.domain.snapshot import Grant, UsersView, Want
from moulin.gateway.accounts import Account
from moulin.gateway.limits import Limits
from moulin.identity.users import recorded_user

USER_ACCOUNTS_MAX: Final = 10_000
TOLD_MAX: Final = 1_000
"""Wishes, and closed accounts, of one call to the leader; the rest goes with the next."""
NAMELESS_SHOWN: Final = "without a name"


class UserAccounts:
    """The accounts of every active user at this gateway, least lately used first.

    A closed account stays named in `_closing` until the leader has certainly heard of it. A user who
    comes back before gets a fresh one, whose wishes never reach the leader before that does.
    """

    def __init__(
        self, limits: Limits, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]
    ) -> None:
        self._limits = limits
        self._loop = loop
        self._wake = wake
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._wishing: dict[str, None] = {}
        self._closing: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def open(self, name: str, user: str) -> Account:
        """Return the account of a user's allowance; raises `Unavailable` when there are too many."""
        account = self._accounts.get(name)
        if account is not None:
            account.used_at_s = self._loop.time()
            self._accounts.move_to_end(name)
            return account
        if len(self._accounts) >= USER_ACCOUNTS_MAX:
            raise Unavailable(
                f"count one more user: {USER_ACCOUNTS_MAX} are active at this gateway",
                hint="try again shortly",
                details={"retry_after_s": 2},
            )

        def wish() -> None:
            self._wishing[name] = None
            self._wake()

        account = Account(name, self._limits, self._loop, wish, user or NAMELESS_SHOWN)
        self._accounts[name] = account
        return account

    def wants(self, now_ns: int, closed: tuple[str, ...]) -> list[Want]:
        """Return what to ask the leader for; of who was closed only beside the word of that."""
        names = [name for name in self._wishing if name not in self._closing or name in closed]
        found = []
        for name in names[:TOLD_MAX]:
            del self._wishing[name]
            account = self._accounts.get(name)
            want = account.want(now_ns) if account is not None else None
            if want is not None:
                found.append(want)
        if self._wishing:
            self._wake()
        return found

    def take(self, grant: Grant) -> None:
        """Give a grant to whom it is for; one for nobody goes back."""
        account = self._accounts.get(grant.project)
        if account is not None:
            account.take(grant)
        elif grant.amount_neur:
            self._closing[grant.project] = None

    def ask_again(self, name: str) -> None:
        """Repeat a wish whose call failed."""
        account = self._accounts.get(name)
        if account is not None:
            account.ask_again()

    def close_idle(self, now_s: float) -> None:
        """Close the accounts of who was quiet for long enough."""
        for _ in range(len(self._accounts)):
            name, account = next(iter(self._accounts.items()))
            if now_s - account.used_at_s < self._limits.escrow_idle_s:
                return
            if account.is_idle:
                del self._accounts[name]
                # Whoever found it before and comes only now finds it empty, and no leader answers.
                account.escrow.give_back()
                self._closing[name] = None
            else:
                self._accounts.move_to_end(name)

    def closing(self) -> tuple[str, ...]:
        """Return what to tell the leader is closed; until it has heard, again and again."""
        return tuple(islice(self._closing, TOLD_MAX))

    def closed(self, names: tuple[str, ...]) -> None:
        """The leader has heard of these."""
        for name in names:
            self._closing.pop(name, None)

    def kept(self) -> dict[str, int]:
        """Return by account what was granted and not given back, of those that were never closed."""
        return {
            name: account.escrow.granted_neur - account.escrow.returned_neur
            for name, account in self._accounts.items()
            if name not in self._closing
        }


class Crowd:
    """The users of one key: who a request is for, and what that user may not exceed."""

    __slots__ = ("_accounts", "_pepper", "_project", "_view")

    def __init__(
        self, view: UsersView, project: str, pepper: bytes, accounts: UserAccounts
    ) -> None:
        self._view = view
        self._project = project
        self._pepper = pepper
        self._accounts = accounts

    def recorded(self, named: str) -> str:
        """Return what is recorded of whom a request names; raises `InvalidRequest`."""
        user = self._view.user or named
        keeps_name = self._view.keeps_names
        return recorded_user(self._pepper, self._project, user, keeps_name=keeps_name)

    def purses(self, named: str, recorded: str) -> tuple[Account, ...]:
        """Return the accounts of a user's allowances; raises what `UserAccounts.open` raises."""
        user = self._view.user or named
        return tuple(
            self._accounts.open(user_allowance(name, recorded), user)
            for name in self._view.allowances
        )
