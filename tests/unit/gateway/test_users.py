"""Accounts of users at a gateway: opened when they come, closed when they are quiet, never many."""

import pytest

from moulin.domain.errors import MoulinError, Unavailable
from moulin.domain.reasons import Reason
from moulin.domain.snapshot import Grant, UsersView, Want
from moulin.gateway import users
from moulin.gateway.limits import Limits
from moulin.gateway.users import Crowd, UserAccounts
from tests.unit.gateway.test_accounts import refusal

NAME = "project_user:lab/usr_none#eur"


class Loop:
    """Time as a test says; what would be called later never is."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def time(self) -> float:
        return self.time_s

    def call_later(self, *_: object) -> None:
        """Nothing expires here."""


class Asking:
    def __init__(self, held_neur: int) -> None:
        self.held_neur = held_neur
        self.is_funded = False
        self.error: MoulinError | None = None
        self.reason: Reason | None = None

    def funded(self) -> None:
        self.is_funded = True

    def refused(self, error: MoulinError, reason: Reason | None) -> None:
        self.error, self.reason = error, reason


def opened() -> tuple[UserAccounts, Loop, list[int]]:
    loop = Loop()
    woken: list[int] = []
    accounts = UserAccounts(Limits(), loop, lambda: woken.append(1))  # type: ignore[arg-type]
    return accounts, loop, woken


def test_a_wish_goes_up_once_and_a_grant_serves_who_waits() -> None:
    accounts, _, woken = opened()
    asking = Asking(30)
    accounts.open(NAME, "ada").pay(asking)
    assert woken
    (want,) = accounts.wants(0, ())
    assert (want.project, want.least_neur) == (NAME, 30)
    assert accounts.wants(0, ()) == []
    accounts.take(Grant(project=NAME, amount_neur=30))
    assert asking.is_funded
    assert accounts.kept() == {NAME: 30}


def test_who_is_quiet_is_closed_and_told_until_it_is_heard() -> None:
    accounts, loop, _ = opened()
    first = Asking(30)
    accounts.open(NAME, "ada").pay(first)
    assert len(accounts.wants(0, ())) == 1
    accounts.take(Grant(project=NAME, amount_neur=50))
    loop.time_s += 60
    accounts.close_idle(loop.time_s)
    assert len(accounts) == 1, "a request is under way"
    accounts.open(NAME, "ada").escrow.settle(30, 10)
    loop.time_s += 4
    accounts.close_idle(loop.time_s)
    assert accounts.closing() == ()
    loop.time_s += 2
    accounts.close_idle(loop.time_s)
    assert (len(accounts), accounts.closing(), accounts.kept()) == (0, (NAME,), {})

    again = Asking(5)
    accounts.open(NAME, "ada").pay(again)
    assert not again.is_funded, "what was granted before is closed"
    assert accounts.wants(0, ()) == []
    assert accounts.kept() == {}
    (want,) = accounts.wants(0, accounts.closing())
    assert isinstance(want, Want)
    accounts.closed((NAME,))
    accounts.take(Grant(project=NAME, amount_neur=5))
    assert again.is_funded
    assert accounts.kept() == {NAME: 5}


def test_an_account_found_before_it_was_closed_spends_nothing() -> None:
    accounts, loop, _ = opened()
    account = accounts.open(NAME, "ada")
    accounts.take(Grant(project=NAME, amount_neur=50))
    loop.time_s += 60
    accounts.close_idle(loop.time_s)
    late = Asking(10)
    account.pay(late)
    assert not late.is_funded


def test_a_grant_for_nobody_goes_back() -> None:
    accounts, _, _ = opened()
    accounts.take(Grant(project=NAME, amount_neur=0))
    assert accounts.closing() == ()
    accounts.take(Grant(project=NAME, amount_neur=5))
    assert accounts.closing() == (NAME,)


def test_so_many_users_and_no_more_are_active_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "USER_ACCOUNTS_MAX", 3)
    accounts, loop, _ = opened()
    for number in range(3):
        accounts.open(f"project_user:lab/u{number}#eur", "u")
    with pytest.raises(Unavailable, match="count one more user: 3 are active"):
        accounts.open(NAME, "ada")
    loop.time_s += 6
    accounts.close_idle(loop.time_s)
    accounts.open(NAME, "ada")
    assert len(accounts) == 1


def test_a_call_tells_some_and_the_next_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "TOLD_MAX", 2)
    accounts, loop, woken = opened()
    names = [f"project_user:lab/u{number}#eur" for number in range(5)]
    for name in names:
        accounts.open(name, "u").pay(Asking(1))
    woken.clear()
    told = [[want.project for want in accounts.wants(0, ())] for _ in range(3)]
    assert told == [names[:2], names[2:4], names[4:]]
    assert len(woken) == 2
    for name in names:
        accounts.take(Grant(project=name, amount_neur=1))
        accounts.open(name, "u").escrow.settle(1, 1)
    loop.time_s += 6
    accounts.close_idle(loop.time_s)
    assert accounts.closing() == tuple(names[:2])
    accounts.closed(accounts.closing())
    assert accounts.closing() == tuple(names[2:4])


def test_a_refusal_names_the_user_as_the_request_did() -> None:
    accounts, _, _ = opened()
    view = UsersView(allowances=("project_user:lab/#eur",))
    crowd = Crowd(view, "lab", b"p" * 32, accounts)
    recorded = crowd.recorded("ada")
    (account,) = crowd.purses("ada", recorded)
    assert account.project == f"project_user:lab/{recorded}#eur"
    asking = Asking(30)
    account.pay(asking)
    account.take(Grant(project=account.project, amount_neur=0, refusal=refusal("1")))
    assert asking.error is not None
    assert asking.reason is not None
    assert (asking.reason.parameters["scope"], asking.reason.parameters["owner"]) == ("user", "ada")
    owner = Crowd(UsersView(user="grace"), "lab", b"p" * 32, accounts).recorded("ada")
    assert owner == Crowd(UsersView(), "lab", b"p" * 32, accounts).recorded("grace")
