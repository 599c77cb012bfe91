"""Counts of a minute outlive the process: what a new one lets through after it was told."""

import asyncio
from collections.abc import Iterator

import pytest

from moulin.domain.limits import ALL_SLICES, GatewayShare, RateLimit
from moulin.domain.snapshot import KeyView, ProjectView
from moulin.gateway.accounts import Account
from moulin.gateway.limits import Limits
from moulin.gateway.quotas import Quotas
from moulin.gateway.recall import Counted
from moulin.gateway.users import UserAccounts

NS = 1_000_000_000
NOW = 1_000_000 * NS
RATE = RateLimit(requests_per_minute=5, tokens_per_minute=100)
PROJECT = ProjectView(name="lab", organisation="uni")


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time the test says; a machine that has just started has a small one."""

    now_s = 20.0

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def loop() -> Iterator[Clock]:
    made = Clock()
    yield made
    made.close()


def key(name: str = "key_1", line: str = "") -> KeyView:
    return KeyView(id=name, digest=name, organisation="uni", project="lab", line=line, rate=RATE)


def counted(ago_s: int, requests: int, tokens: int, name: str = "key_1") -> Counted:
    return Counted(NOW - ago_s * NS, "uni", "lab", name, requests, tokens)


def opened(loop: Clock) -> Quotas:
    users = UserAccounts(Limits(), loop, lambda: None)
    quotas = Quotas(lambda name: Account(name, Limits(), loop, lambda: None), users, loop)
    quotas.take(GatewayShare(slices=ALL_SLICES, version=1))
    return quotas


def let_through(quotas: Quotas, view: KeyView, project: ProjectView = PROJECT) -> int:
    """Return how many requests of ten tokens go on now."""
    guard = quotas.guard(view, project, b"")
    assert guard is not None
    refusals = [guard.enter(None, 10).refusal for _ in range(10)]  # type: ignore[arg-type]
    return refusals.count(None)


@pytest.mark.parametrize(
    ("past", "left"),
    [
        ([], 5),
        ([counted(5, 3, 30)], 2),
        ([counted(5, 3, 30), counted(59, 1, 10)], 1),
        ([counted(5, 1, 80)], 2),
        ([counted(5, 9, 900)], 0),
        ([counted(61, 5, 50)], 5),
        ([counted(-4, 5, 50)], 0),
        ([counted(5, 5, 50, "key_2")], 5),
    ],
)
def test_a_new_process_lets_through_the_rest(loop: Clock, past: list[Counted], left: int) -> None:
    quotas = opened(loop)
    quotas.recall(past, [key()], NOW)
    assert let_through(quotas, key()) == left


def test_the_minute_passes_as_if_the_process_had_lived(loop: Clock) -> None:
    quotas = opened(loop)
    quotas.recall([counted(50, 2, 20), counted(30, 3, 30)], [key()], NOW)
    assert let_through(quotas, key()) == 0
    loop.now_s += 11  # 61 seconds after the first two
    assert let_through(quotas, key()) == 2
    loop.now_s += 20
    assert let_through(quotas, key()) == 3


def test_keys_of_one_line_share_what_was_used(loop: Clock) -> None:
    quotas = opened(loop)
    keys = [key("key_1"), key("key_2", line="key_1")]
    quotas.recall([counted(5, 2, 20), counted(4, 2, 20, "key_2")], keys, NOW)
    assert let_through(quotas, keys[1]) == 1
    assert let_through(quotas, keys[0]) == 0


def test_rates_of_project_and_organisation_are_counted_too(loop: Clock) -> None:
    quotas = opened(loop)
    quotas.recall([counted(5, 4, 40, "key_9")], [key()], NOW)
    limited = ProjectView(name="lab", organisation="uni", rate=RATE)
    assert let_through(quotas, key(), limited) == 1


def test_the_leader_hears_when_the_last_one_was_let_through(loop: Clock) -> None:
    quotas = opened(loop)
    assert quotas.limited_ago_s() == -1
    quotas.recall([counted(9, 1, 1), counted(7, 1, 1)], [key()], NOW)
    assert quotas.limited_ago_s() == 7


def test_what_nobody_asks_for_is_forgotten(loop: Clock) -> None:
    quotas = opened(loop)
    quotas.recall([counted(0, 5, 50)], [key()], NOW)
    quotas.forget_past()
    assert let_through(quotas, key()) == 0
    quotas = opened(loop)
    quotas.recall([counted(0, 5, 50)], [key()], NOW)
    loop.now_s += 62
    quotas.forget_past()
    assert let_through(quotas, key()) == 5
