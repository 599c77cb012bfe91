"""Requests waiting for money are told their own numbers when they are refused."""

import asyncio

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
