"""Requests waiting for money are told their own numbers when they are refused."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from moulin.controlplane.allowances import is_refused, portion
from moulin.domain.errors import BudgetExceeded
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.snapshot import Grant
from moulin.gateway.accounts import Account
from moulin.gateway.limits import Limits


class Asking:
    """A request that remembers what it was told."""

    def __init__(self, held_neur: int) -> None:
        self.held_neur = held_neur
        self.is_funded = False
        self.error: BaseException | None = None
        self.reason: Reason | None = None

    def funded(self) -> None:
        self.is_funded = True

    def refused(self, error, reason):
        self.error, self.reason = error, reason


def refusal(wanted_eur: str) -> Reason:
    parameters = {
        "project": "p",
        "left_eur": "0.00",
        "limit_eur": "0.0001",
        "wanted_eur": wanted_eur,
    }
    return Reason(code=ReasonCode.BUDGET_EXCEEDED, parameters=parameters)


def test_a_refused_request_is_told_what_it_wanted_and_what_is_left():
    async def story() -> tuple[Asking, Asking]:
        account = Account("p", Limits(), asyncio.get_running_loop(), lambda: None)
        first, second = Asking(30_000), Asking(30_000)
        account.pay(first)
        # The leader gives the rest of the budget, less than what was wished for 40 requests.
        account.take(Grant(project="p", amount_neur=50_000, refusal=refusal("0.0012")))
        account.pay(second)
        return first, second

    first, second = asyncio.run(story())
    assert first.is_funded
    assert not second.is_funded
    assert isinstance(second.error, BudgetExceeded)
    assert second.reason is not None
    assert second.reason.parameters["wanted_eur"] == "0.00003"
    assert second.reason.parameters["left_eur"] == "0.00002"
    assert "has 0.00002 EUR left of 0.0001 EUR; this reserves 0.00003 EUR" in str(second.error)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=10, max_size=60))
def test_two_gateways_serve_as_many_equal_requests_as_the_money_fits(arrivals):
    fits, each = 8, 1_000_000
    asking: tuple[list[Asking], list[Asking]] = ([], [])

    async def story() -> None:
        loop = asyncio.get_running_loop()
        accounts = [Account("p", Limits(), loop, lambda: None) for _ in asking]
        available, known = fits * each, set()

        def exchange(which: int) -> None:
            nonlocal available
            while (want := accounts[which].want(0)) is not None:
                known.add(which)
                amount = portion(want, available, len(known))
                available -= amount
                reason = refusal("0.001") if is_refused(want, amount) else None
                accounts[which].take(Grant(project="p", amount_neur=amount, refusal=reason))

        for which, is_exchanged in arrivals:
            asking[which].append(Asking(each))
            accounts[which].pay(asking[which][-1])
            if is_exchanged:
                exchange(which)
        exchange(0)
        exchange(1)

    asyncio.run(story())
    served = [sum(one.is_funded for one in part) for part in asking]
    assert sum(served) <= fits
    # Where each has as many requests as there is money for, none of it serves nobody.
    if min(map(len, asking)) >= fits:
        assert sum(served) == fits


def test_a_small_request_is_asked_for_though_a_large_one_was_just_refused():
    async def story() -> tuple[Asking, Asking, bool]:
        account = Account("p", Limits(), asyncio.get_running_loop(), lambda: None)
        large, small = Asking(90_000), Asking(30_000)
        account.pay(large)
        assert account.want(0) is not None
        account.take(Grant(project="p", amount_neur=0, refusal=refusal("0.00009")))
        account.pay(small)
        return large, small, account.want(1) is not None

    large, small, is_asked = asyncio.run(story())
    assert isinstance(large.error, BudgetExceeded)
    assert small.error is None
    assert is_asked
