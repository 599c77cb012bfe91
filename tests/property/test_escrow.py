"""Whatever happens in whatever order: nothing negative, and every granted n€ is in one place."""

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moulin.routing.escrow import Escrow

AMOUNTS = st.integers(min_value=0, max_value=10**18)


class EscrowMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.escrow = Escrow()
        self.granted = 0
        self.held: list[int] = []
        self.given_back: list[int] = []

    @rule(amount=AMOUNTS)
    def grant(self, amount: int) -> None:
        self.escrow.grant(amount)
        self.granted += amount

    @rule(amount=AMOUNTS)
    def hold(self, amount: int) -> None:
        before = self.escrow.left_neur
        is_held = self.escrow.hold(amount)
        assert is_held == (amount <= before)
        if is_held:
            self.held.append(amount)

    @rule(share=st.integers(min_value=0, max_value=100))
    def settle(self, share: int) -> None:
        if self.held:
            amount = self.held.pop()
            self.escrow.settle(amount, amount * share // 100)

    @rule()
    def give_back(self) -> None:
        self.given_back.append(self.escrow.give_back())

    @rule()
    def take_again(self) -> None:
        if self.given_back:
            self.escrow.take_again(self.given_back.pop())

    @rule(needed=AMOUNTS, now=st.integers(min_value=0, max_value=10**15))
    def wish(self, needed: int, now: int) -> None:
        before = self.escrow.left_neur
        assert self.escrow.wish(needed, now) + before >= needed

    @invariant()
    def everything_granted_is_in_one_place(self) -> None:
        escrow = self.escrow
        parts = (escrow.held_neur, escrow.spent_neur, escrow.returned_neur, escrow.left_neur)
        assert all(part >= 0 for part in parts)
        assert sum(parts) == escrow.granted_neur == self.granted
        assert escrow.held_neur == sum(self.held)


TestEscrow = EscrowMachine.TestCase
