"""One seed: steps of actions, faults, turns of the control plane and judgements, then a quiet end.

`simulate(seed)` is the whole of it. The same seed gives the same history in any process; the history
is hashed as it happens.
"""

import hashlib
import random
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import orjson

from moulin.controlplane.commands import Answer
from moulin.domain.event_wire import encode_event
from moulin.domain.events import Event
from moulin.domain.snapshot import SyncReply
from moulin.engines.simulated.world import World
from moulin.scheduler import SchedulerPolicy
from tests.simulation.actions import Actions
from tests.simulation.ending import judge_end, quiet_steps
from tests.simulation.faults import Faults
from tests.simulation.gateway import Gateway
from tests.simulation.holds import Holds
from tests.simulation.invariants import Judge, Violation
from tests.simulation.kept import Kept
from tests.simulation.money import Auditor
from tests.simulation.nursing import CALM_S, SUSPECT_S, Nursing, first_readings
from tests.simulation.process import Machine, Process
from tests.simulation.scenario import scenario
from tests.simulation.serving import Replicas
from tests.simulation.steering import Steering
from tests.simulation.tenants import Tenants
from tests.simulation.world import (
    SECOND,
    Dice,
    Place,
    Signer,
    TrueClock,
    memory_disk,
    sqlite_disk,
)

STEPS = 160
COMPARE_EVERY = 20
ACTIONS_SHOWN = 25
SQLITE_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one seed; `violation` is empty when every invariant held after every step.

    `error` names the exception that ended it when that was no judgement of ours.
    """

    seed: int
    steps: int
    history: str
    violation: str = ""
    error: str = ""
    actions: tuple[str, ...] = ()
    trace: str = ""


class Simulation:
    """One seed's factory with everybody in it."""

    def __init__(self, seed: int, *, steps: int = STEPS) -> None:
        self.seed = seed
        self.steps_wanted = steps
        self.rng = random.Random(seed)
        self.clock = TrueClock()
        self.faults = Faults()
        found = scenario(self.rng)
        self.places = {
            pool: Place(
                pool=pool,
                world=World(self.clock, nodes, start_delay_ns=self.rng.choice([0, SECOND // 3])),
                is_polled=self.rng.random() < 0.4,
            )
            for pool, nodes in found.nodes.items()
        }
        self.disk = sqlite_disk() if seed % SQLITE_EVERY == 0 else memory_disk()
        self.machine = Machine(
            disk=self.disk,
            clock=self.clock,
            faults=self.faults,
            dice=Dice(random.Random(self.rng.getrandbits(64)), self.faults),
            signer=Signer(seed, self.faults),
            places=self.places,
            policy=SchedulerPolicy(job_backoff_max_s=8, suspect_s=SUSPECT_S, calm_s=CALM_S),
        )
        self.tenants = Tenants(self.rng, self.clock, found.objects)
        self.gateways = [Gateway(name, self.clock, self.rng) for name in ("gw-a", "gw-b")]
        self.judge = Judge(self.disk.reader, self.places, self.machine.policy)
        holds = Holds(self.judge.books.schedule.steps)
        self.auditor = Auditor(self.disk.reader, self.machine.signer, holds)
        self.kept = Kept(self.places, holds.tallies)
        self.replicas = Replicas(self.gateways)
        self.steering = Steering(self.judge)
        first_readings(self.places)
        self.nursing = Nursing(self.places)
        self.process: Process | None = None
        self.former: Process | None = None
        self.error_ns = 0
        self.step = 0
        self.is_quiet = False
        self.replies_lost = 0
        self.boots = 0
        self.history = hashlib.sha256()
        self.notes: deque[str] = deque(maxlen=ACTIONS_SHOWN)
        self.actions = Actions(self)
        self._polls: list[tuple[Gateway, int, Future[Answer]]] = []

    def run(self) -> Result:
        """Tell the story to its end, or to the first violation."""
        violation = error = trace = ""
        try:
            self._begin()
            for _ in range(self.steps_wanted):
                self.note(self.actions.draw())
                self.clock.advance(int(self.rng.choice(_PAUSES_S) * SECOND))
                self.turn()
            for duration_s in quiet_steps(self):
                self.clock.advance(duration_s * SECOND)
                self.turn()
            judge_end(self)
        except Violation as found:
            violation = str(found)
        except Exception as raised:  # noqa: BLE001 - whatever is raised is a bug
            error = type(raised).__name__
            violation, trace = f"{error}: {raised}", traceback.format_exc()
        finally:
            self.close()
        return Result(
            seed=self.seed,
            steps=self.step,
            history=self.history.hexdigest(),
            violation=violation,
            error=error,
            actions=tuple(self.notes),
            trace=trace,
        )

    def turn(self) -> None:
        """Let everybody move once, then judge: one step."""
        self.step += 1
        if self.process is None and (self.is_quiet or self.rng.random() < 0.4):
            self.start_process()
        if self.process is not None:
            self._move_gateways(self.process)
            self.process.turn()
        if self.former is not None:
            self.former.turn()
        self._judge()
        if self.former is not None and not self.former.is_alive:
            self.former = None
        if self.process is not None and not self.process.is_alive:
            self.bury()

    def start_process(self) -> None:
        """Start a control plane; it may not come up."""
        self.boots += 1
        process = Process(self.machine, self.error_ns, self.boots)
        if not process.start():
            self.note(f"process {self.boots} did not come up ({self.faults.last_point})")
            return
        self.process = process
        assert process.plane
        self._remember(self.judge.read_log(self._tell))
        self.judge.compare(process.plane.books)

    def bury(self) -> None:
        """Forget a dead process; whoever waited for it hears nothing."""
        self.note(f"process {self.boots} is gone ({self.faults.last_point})")
        self.process = None
        self.tenants.hear(is_gone=True)
        self._polls.clear()
        for gateway in self.gateways:
            gateway.hear(is_lost=True)

    def note(self, text: str) -> None:
        """Keep what was done, for who reads a violation."""
        self.notes.append(f"{self.step:4} {(self.clock.now_ns() // 10**6) % 10**8} {text}")

    def close(self) -> None:
        """Let go of the disk."""
        for process in (self.process, self.former):
            if process is not None and process.is_alive:
                process.end()
        self.disk.close()

    def _begin(self) -> None:
        self.start_process()
        assert self.process
        self.tenants.begin(self.process.inbox.call)
        self.turn()
        self.tenants.submit_first(self.process.inbox.call)
        for gateway in self.gateways:
            gateway.start()
        self.turn()

    def _move_gateways(self, process: Process) -> None:
        for gateway in self.gateways:
            if gateway.is_alive and (self.is_quiet or self.rng.random() < 0.5):
                gateway.ship(process.inbox.call, is_last=gateway.is_finishing)
            if gateway.is_alive and (gateway.snapshot is None or self.rng.random() < 0.15):
                poll = gateway.poll(process.inbox.call)
                self._polls.append((gateway, gateway.epoch, poll))

    def _judge(self) -> None:
        self._remember(self.judge.read_log(self._tell))
        self.judge.look_at_worlds()
        self.kept.look_at_worlds()
        self.auditor.judge_sums(self.judge.books)
        for command, answer in self.tenants.hear(is_gone=False):
            self.judge.hear(command, answer)
        self.judge.judge_wishes(self.tenants.wishes)
        self._hear_gateways()
        plane = self.process.plane if self.process and self.process.is_alive else None
        if plane is not None and not plane.is_ahead and self.step % COMPARE_EVERY == 0:
            self.judge.compare(plane.books)

    def _tell(self, event: Event) -> None:
        self.auditor.read(event)
        self.kept.read(event)
        self.replicas.read(event)
        self.steering.read(event)
        self.nursing.read(event)

    def _hear_gateways(self) -> None:
        for gateway in self.gateways:
            is_lost = self.replies_lost > 0
            if gateway.is_waiting and is_lost:
                self.replies_lost -= 1
            gateway.hear(is_lost=is_lost)
        for gateway, epoch, poll in self._polls:
            if poll.done() and gateway.is_alive and gateway.epoch == epoch:
                reply = poll.exception() or poll.result()
                if isinstance(reply, SyncReply):
                    gateway.take(reply)
        self._polls = [poll for poll in self._polls if not poll[2].done()]

    def _remember(self, events: Sequence[Event]) -> None:
        self.history.update(b"%d %d\n" % (self.step, self.clock.now_ns()))
        for event in events:
            self.history.update(orjson.dumps(encode_event(event)))
        for place in self.places.values():
            self.history.update(b"%d " % len(place.world.history))


_PAUSES_S = (0.0, 0.05, 0.2, 0.3, 0.5, 1.0, 2.0, 6.0)


def simulate(seed: int, *, steps: int = STEPS) -> Result:
    """Run one seed."""
    return Simulation(seed, steps=steps).run()
