"""Whatever is lost or killed in whatever order: no user spends more than the limit.

The control plane, the gateways' state, their journals and their line to it are the real ones; the
wire between them loses requests and replies, and gateways die in the middle of requests.
"""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import orjson
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moulin.domain.errors import MoulinError
from moulin.domain.limits import Allowance, UserRule
from moulin.domain.reasons import Reason
from moulin.domain.snapshot import SyncRequest
from moulin.domain.wire import decode, encode
from moulin.gateway import journal
from moulin.gateway.control import ControlLink
from moulin.gateway.http_client import NotSent, Unreachable
from moulin.gateway.journal import Journal, JournalReader, predecessors
from moulin.gateway.limits import Limits
from moulin.gateway.quotas import Pass
from moulin.gateway.records import BEGIN, END
from moulin.gateway.service import Service
from moulin.identity.users import recorded_user
from tests.integration.gateway.control_real import ControlReal
from tests.integration.gateway.plant import KEY, PEPPER

LIMIT_NEUR = 100
USERS = ("ada", "")
FATES = st.sampled_from(("arrives", "arrives", "not sent", "request lost", "reply lost"))
ROUTE = (
    b'"organisation":"lab","project":"atelier","key":"key_1","model":"m","endpoint":"e","user":%b'
)
REPLICA = b'"replica":"r","zone":"z"'


class Wire:
    """What carries calls to the control plane, and loses some; `fate` says how the next ends."""

    def __init__(self, control: ControlReal) -> None:
        self.control = control
        self.fate = "arrives"

    async def post(self, path: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        fate, self.fate = self.fate, "arrives"
        if fate == "not sent":
            raise NotSent("the connection was refused")
        if fate == "request lost":
            raise Unreachable("no answer")
        try:
            reply = self.control.sync(decode(SyncRequest, json.loads(body)))
        except MoulinError as error:
            return error.http_status, b"{}"
        if fate == "reply lost":
            raise Unreachable("no answer")
        return 200, json.dumps(encode(reply)).encode()

    def close(self) -> None:
        """There is nothing to close."""


class Asking:
    """A request of one user: held, or refused."""

    def __init__(self, number: int, user: str, held_neur: int) -> None:
        self.number = number
        self.user = user
        self.held_neur = held_neur
        self.is_running = False
        self.is_refused = False
        self.begin: Callable[[Asking], None] = lambda _: None
        self.passing: Pass | None = None

    def within_limits(self) -> None:
        self.is_running = True
        self.begin(self)

    def refused(self, error: MoulinError, reason: Reason | None) -> None:
        self.is_refused = True
        if self.passing is not None:
            self.passing.leave(0, 0)


class GatewayProcess:
    """All of a gateway but its sockets."""

    def __init__(self, control: ControlReal, folder: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.wire, self.folder, self.loop = Wire(control), folder, loop
        self.epoch = 0
        self.asking: list[Asking] = []
        folder.mkdir()
        self.start()

    def start(self) -> None:
        self.epoch += 1
        readers = list(predecessors(self.folder))
        own = Journal(self.folder, self.epoch, self.loop)
        self.service = Service(limits=Limits(), pepper=PEPPER, journal=own, loop=self.loop)
        self.link = ControlLink(
            service=self.service,
            url="http://127.0.0.1:1",
            key=KEY,
            name=self.folder.name,
            epoch=self.epoch,
            readers=[*readers, JournalReader(own.path, is_finished=False)],
            sink=_Forgetful(),
            limits=Limits(),
        )
        self.link._client = self.link._poll_client = self.wire  # type: ignore[assignment]

    def ask(self, asking: Asking) -> None:
        directory = self.service._directory
        if directory is None:
            return
        (view,) = directory.snapshot.keys
        guard = self.service.quotas.guard(view, directory.snapshot.projects[0], PEPPER)
        assert guard is not None
        assert guard.crowd is not None
        recorded = guard.crowd.recorded(asking.user)
        asking.begin = self.begin
        asking.passing = guard.enter(asking, 0, guard.crowd.purses(asking.user, recorded))
        self.asking.append(asking)
        asking.passing.hold()

    def begin(self, asking: Asking) -> None:
        self._write(BEGIN, asking, asking.held_neur)

    def end(self, asking: Asking, spent_neur: int) -> None:
        self.asking.remove(asking)
        assert asking.passing is not None
        asking.passing.leave(0, spent_neur)
        self._write(END, asking, spent_neur, b"completed", b"false")

    def _write(self, form: bytes, asking: Asking, amount_neur: int, *rest: bytes) -> None:
        user = orjson.dumps(recorded_user(PEPPER, "atelier", asking.user, keeps_name=False))
        name = b"%s%d" % (self.folder.name.encode(), asking.number)
        at_ns = self.service.now_ns()
        line = form % (name, at_ns, ROUTE % user, REPLICA, 0, 0, amount_neur, *rest)
        self.service.journal.append(line, None)

    def exchange(self, fate: str) -> None:
        self.wire.fate = fate

        async def once() -> None:
            await asyncio.sleep(0)  # what is due, as lines of the journal, happens first
            self.link._collect_returns(is_last=False)
            try:
                while await self.link._exchange_once():
                    pass
            except (Unreachable, MoulinError):
                await asyncio.sleep(0)

        self.loop.run_until_complete(once())
        self.wire.fate = "arrives"

    def learn(self) -> None:
        """Hear of the present snapshot, as the long poll does."""
        body = self.link._request(self.link._readers[0].epoch, b"", {"wait_s": 0})
        self.loop.run_until_complete(self.link._call(self.wire, body, 1.0))  # type: ignore[arg-type]


class _Forgetful:
    def keep(self, snapshot: Any, confirmed_at_ns: int) -> None:
        """Nobody starts from a kept snapshot here."""

    def confirm(self, confirmed_at_ns: int) -> None:
        """As above."""


@pytest.fixture(autouse=True)
def _short_shipments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call tell two lines at most: what a gateway holds is then often not told whole."""
    monkeypatch.setattr(journal, "SHIPMENT_BYTES", 600)


class Spending(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        rule_ = UserRule(is_counted=True, allowance=Allowance(amount_neur=LIMIT_NEUR))
        self.control = ControlReal(key={}, per_user=rule_)
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.time_s = 1000.0
        self.loop.time = lambda: self.time_s  # type: ignore[method-assign]
        self.gateways = [
            GatewayProcess(self.control, Path(self.folder.name) / name, self.loop)
            for name in ("one", "two")
        ]
        for gateway in self.gateways:
            gateway.learn()
        self.number = 0
        self.spent: Counter[str] = Counter()

    @rule(
        which=st.sampled_from((0, 1)),
        user=st.sampled_from(USERS),
        amount=st.integers(min_value=0, max_value=40),
    )
    def ask(self, which: int, user: str, amount: int) -> None:
        self.number += 1
        self.gateways[which].ask(Asking(self.number, user, amount))
        self.loop.run_until_complete(asyncio.sleep(0))

    @rule(which=st.sampled_from((0, 1)), share=st.integers(min_value=0, max_value=100))
    def end(self, which: int, share: int) -> None:
        gateway = self.gateways[which]
        running = [asking for asking in gateway.asking if asking.is_running]
        if running:
            spent = running[0].held_neur * share // 100
            gateway.end(running[0], spent)
            self.spent[running[0].user] += spent

    @rule(
        which=st.sampled_from((0, 1)),
        fate=FATES,
    )
    def exchange(self, which: int, fate: str) -> None:
        self.gateways[which].exchange(fate)

    @rule(seconds=st.sampled_from((1.0, 4.0, 6.0)))
    def wait(self, seconds: float) -> None:
        self.time_s += seconds
        self.loop.run_until_complete(asyncio.sleep(0))

    @rule(
        which=st.sampled_from((0, 1)),
        user=st.sampled_from(USERS),
        amount=st.integers(min_value=1, max_value=40),
        fates=st.tuples(FATES, FATES),
    )
    def come_back(self, which: int, user: str, amount: int, fates: tuple[str, str]) -> None:
        """Be quiet, so that accounts are closed, and ask again while that is under way."""
        self.wait(6.0)
        for fate in fates:
            self.exchange(which, fate)
            self.ask(which, user, amount)
            self.end(which, 50)
        self.exchange(which, "arrives")

    @precondition(lambda self: self.number > 3)
    @rule(which=st.sampled_from((0, 1)))
    def kill(self, which: int) -> None:
        gateway = self.gateways[which]
        self.loop.run_until_complete(asyncio.sleep(0))
        for asking in gateway.asking:
            if asking.is_running:
                self.spent[asking.user] += asking.held_neur
        gateway.asking = []
        gateway.service.journal.close()
        gateway.start()
        gateway.learn()

    @invariant()
    def nobody_spends_more(self) -> None:
        held: Counter[str] = Counter()
        for gateway in self.gateways:
            for asking in gateway.asking:
                held[asking.user] += asking.held_neur if asking.is_running else 0
        for user in USERS:
            assert self.spent[user] + held[user] <= LIMIT_NEUR

    def teardown(self) -> None:
        for gateway in self.gateways:
            for asking in [each for each in gateway.asking if each.is_running]:
                gateway.end(asking, 0)
            gateway.asking = []
        for _ in range(3):
            self.wait(6.0)
            for gateway in self.gateways:
                gateway.exchange("arrives")
                for asking in [each for each in gateway.asking if each.is_running]:
                    gateway.end(asking, 0)
        crowds = self.control.bench.plane.books.allowances.crowds
        for crowd in crowds.values():
            assert {each.held for each in crowd.spending.values()} <= {0}
            assert sum(each.used for each in crowd.spending.values()) == self.spent.total()
        for gateway in self.gateways:
            assert len(gateway.service.users) == 0
            gateway.service.journal.close()
        self.control.stop()
        self.loop.close()
        self.folder.cleanup()


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
