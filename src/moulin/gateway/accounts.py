"""Requests waiting for money: one account per project, or allowance, around its escrow.

It decides who is served when a grant arrives (first come) and who is refused. The arithmetic is in
`moulin.routing.escrow`; asking the leader is `moulin.gateway.control`'s work.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from moulin.domain.errors import BudgetExceeded, MoulinError, Unavailable
from moulin.domain.limits import amount_text, is_allowance
from moulin.domain.reasons import Reason, sentence
from moulin.domain.snapshot import Grant, Want
from moulin.domain.units import format_euros
from moulin.gateway.limits import Limits
from moulin.routing.escrow import Escrow

REFUSAL_HOLDS_S = 0.2
"""A refusal answers what comes right behind it, so that a flood does not become a flood upwards."""


class Payer(Protocol):
    """A request that needs `held_neur` before it may go on."""

    held_neur: int

    def funded(self) -> None:
        """Go on: the amount is held."""
        ...

    def refused(self, error: MoulinError, reason: Reason | None) -> None:
        """Give up: no money came."""
        ...


class Account:
    """Escrow of one project, or one allowance by name, and the requests that wait for more of it.

    The amounts of an allowance in tokens are tokens. `user` is the name that the refusals of a
    user's allowance give, as the client gave it.
    """

    def __init__(
        self,
        project: str,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
        user: str = "",
    ) -> None:
        self.project = project
        self._user = user
        self.escrow = Escrow()
        self.used_at_s = loop.time()
        self._limits = limits
        self._loop = loop
        self._wake = wake
        self._waiting: deque[Payer] = deque()
        self._is_wishing = False
        self._latest_neur = 0
        self._least_neur = 0
        self._refusal: Reason | None = None
        self._refused_at_s = 0.0

    def pay(self, payer: Payer) -> None:
        """Hold the payer's amount now, or let it wait for escrow."""
        self.used_at_s = self._loop.time()
        self._latest_neur = payer.held_neur
        if not self._waiting and self.escrow.hold(payer.held_neur):
            if not self._is_wishing and self.escrow.is_running_low() and not self._refusal:
                self._ask()
            payer.funded()
            return
        if self._refusal and self._is_refused_too(payer):
            self._refuse(payer, self._refusal)
            return
        self._waiting.append(payer)
        self._loop.call_later(self._limits.escrow_wait_s, self._expire, payer)
        self._ask()

    def forget(self, payer: Payer) -> None:
        """Drop a request whose client went away while it waited."""
        if payer in self._waiting:
            self._waiting.remove(payer)

    def want(self, now_ns: int) -> Want | None:
        """Return what to ask the leader for, or None."""
        if not self._is_wishing:
            return None
        self._is_wishing = False
        needed_neur = sum(payer.held_neur for payer in self._waiting)
        amount_neur = self.escrow.wish(needed_neur, now_ns)
        if amount_neur <= 0:
            return None
        # Near exhaustion the leader gives little at a time, in whole requests: who waits longest is
        # served first, and where nobody does the next is taken to be like the latest.
        first_neur = self._latest_neur
        if self._waiting:
            first_neur = self._waiting[0].held_neur - self.escrow.left_neur
        self._least_neur = max(first_neur, 1)
        return Want(project=self.project, amount_neur=amount_neur, least_neur=self._least_neur)

    def take(self, grant: Grant) -> None:
        """Take in a grant, serve who waits in order, and refuse the rest if the leader did."""
        self.escrow.grant(grant.amount_neur)
        self._refusal, self._refused_at_s = grant.refusal, self._loop.time()
        while self._waiting and self.escrow.hold(self._waiting[0].held_neur):
            self._waiting.popleft().funded()
        if grant.refusal is not None:
            while self._waiting:
                self._refuse(self._waiting.popleft(), grant.refusal)
        elif self._waiting:
            self._ask()

    def ask_again(self) -> None:
        """Repeat a wish whose call failed."""
        if self._waiting:
            self._ask()

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds anything of it or waits for it."""
        return not (self._waiting or self._is_wishing or self.escrow.held_neur)

    def idle_escrow(self, now_s: float) -> int:
        """Take out what a quiet project does not need, in n€."""
        if self._waiting or now_s - self.used_at_s < self._limits.escrow_idle_s:
            return 0
        return self.escrow.give_back()

    def _is_refused_too(self, payer: Payer) -> bool:
        """Say whether a request asks for at least what the leader has just refused."""
        is_recent = self.used_at_s - self._refused_at_s < REFUSAL_HOLDS_S
        return is_recent and payer.held_neur - self.escrow.left_neur >= self._least_neur

    def _ask(self) -> None:
        self._is_wishing = True
        self._wake()

    def _expire(self, payer: Payer) -> None:
        if payer in self._waiting:
            self._waiting.remove(payer)
            payer.refused(
                Unavailable(
                    "reserve the cost of this request: the control plane did not answer in time",
                    hint="try again shortly",
                    details={"retry_after_s": 2},
                ),
                None,
            )

    def _refuse(self, payer: Payer, refusal: Reason) -> None:
        """Tell a request its own numbers; the leader's are of the whole wish, which is often larger.

        A refusing leader has handed out all there was, so what is left is in this escrow.
        """
        own: dict[str, str]
        if is_allowance(self.project):
            own = {
                "left": amount_text(self.project, self.escrow.left_neur),
                "wanted": amount_text(self.project, payer.held_neur),
            }
            if self._user:
                own.update(scope="user", owner=self._user)
        else:
            own = {
                "left_eur": format_euros(self.escrow.left_neur),
                "wanted_eur": format_euros(payer.held_neur),
            }
        reason = replace(refusal, parameters={**refusal.parameters, **own})
        hint = "ask for a smaller max_tokens, or have the budget raised"
        payer.refused(BudgetExceeded(sentence(reason), hint=hint), reason)
