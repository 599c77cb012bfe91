"""Everything a control plane meets through its ports, simulated, and outliving it: time, dice, nodes.

Nothing here decides; the engines, meters and the store do what they promise, except where `Faults`
says otherwise. Only the disk and the worlds survive a crash of the control plane.
"""

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from moulin.domain.errors import SourceUnavailable
from moulin.domain.events import Event
from moulin.domain.factory import Pool
from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import Claim, LogChunk, NodeCapacity, Observation, TaskPhase
from moulin.domain.plan import StartStep
from moulin.domain.workload import EndpointSpec, TaskTemplate
from moulin.engines.simulated.engine import SimulatedEngine
from moulin.engines.simulated.world import World
from moulin.ports.engine import Engine
from moulin.ports.launcher import ModelFacts
from moulin.ports.meter import NodeCounter
from moulin.ports.store import Batch, Store
from moulin.store.memory import MemoryDisk, MemoryStore
from tests.simulation.faults import Faults

START_NS = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
FACTORY = "sim"
OPERATOR_SECRET = b"operator secret of a simulation"
CPU_NS_OF_SYSTEM_PER_S = 20_000_000


class TrueClock:
    """The time of the world; it only goes forward."""

    def __init__(self) -> None:
        self.time_ns = START_NS

    def now_ns(self) -> int:
        return self.time_ns

    def advance(self, duration_ns: int) -> None:
        self.time_ns += duration_ns


@dataclass(slots=True)
class ProcessClock:
    """What one process takes for the time: right up to an error that it keeps for its life."""

    true: TrueClock
    error_ns: int = 0

    def now_ns(self) -> int:
        return self.true.time_ns + self.error_ns


class Dice:
    """Entropy from the seed; a draw is a point where a process can die."""

    def __init__(self, rng: random.Random, faults: Faults) -> None:
        self._rng = rng
        self._faults = faults

    def entropy(self) -> int:
        self._faults.trip("dice")
        return self._rng.getrandbits(80)


class Signer:
    """A real Ed25519 key made from the seed."""

    key_name = f"moulin/{FACTORY}"
    operator_secret = OPERATOR_SECRET

    def __init__(self, seed: int, faults: Faults) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed.to_bytes(32, "big"))
        self._faults = faults
        self.public_key = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        self._faults.trip("sign")
        return self._private.sign(message)


class Shelf:
    """A launcher that knows every model and starts nothing real."""

    def facts(self, endpoint: EndpointSpec) -> ModelFacts:
        return ModelFacts(
            name=endpoint.model,
            digest=f"sha256:{endpoint.model}",
            memory_bytes=10**9,
            context_tokens=endpoint.context_tokens,
        )

    def task(self, step: StartStep) -> TaskTemplate:
        return TaskTemplate(command=("serve",))

    def replica_key(self, attempt: str) -> str:
        return f"key of {attempt}"


@dataclass(slots=True)
class Place:
    """One pool's world with what it was asked to start and to forget: the truth about its tasks."""

    pool: str
    world: World
    started: dict[StepId, StartStep] = field(default_factory=dict)
    steps_by_node: dict[NodeId, list[StepId]] = field(default_factory=dict)
    is_polled: bool = False
    hidden: set[NodeId] = field(default_factory=set)
    forgotten: list[StepId] = field(default_factory=list)
    forgotten_cpu_ns: dict[NodeId, int] = field(default_factory=dict)

    @property
    def node_names(self) -> frozenset[NodeId]:
        """The nodes of this pool."""
        return frozenset(each.node for each in self.world.capacity())

    def busy_ns(self, node: NodeId, now_ns: int) -> int:
        """Return the CPU time that a node's own counter shows: its tasks' and the system's."""
        self.world.advance()
        system = (now_ns - START_NS) * CPU_NS_OF_SYSTEM_PER_S // SECOND
        known = sum(self.world.observe(step).cpu_ns for step in self.steps_by_node.get(node, ()))
        return system + known + self.forgotten_cpu_ns.get(node, 0)

    def note_forgotten(self, step: StepId, cpu_ns: int) -> None:
        """Take over what the world has just forgotten; its node's counter never goes back."""
        self.forgotten.append(step)
        node = self.started[step].nodes[self.started[step].rank]
        self.steps_by_node[node].remove(step)
        self.forgotten_cpu_ns[node] = self.forgotten_cpu_ns.get(node, 0) + cpu_ns


class PolledEngine:
    """One process's connection to a pool's world: it can be asked, and tells nothing by itself."""

    def __init__(self, place: Place, faults: Faults) -> None:
        self.place = place
        self.inner = SimulatedEngine(place.world)
        self._faults = faults

    def start(self, step: StartStep) -> Claim:
        self._faults.trip("before start")
        runs = len(self.place.world.history)
        try:
            return self.inner.start(step)
        finally:
            if len(self.place.world.history) > runs:
                self.place.started[step.step] = step
                node = step.nodes[step.rank]
                self.place.steps_by_node.setdefault(node, []).append(step.step)
            self._faults.trip("after start")

    def stop(self, step: StepId, grace_s: int) -> None:
        self._faults.trip("before stop")
        self.inner.stop(step, grace_s)
        self._faults.trip("after stop")

    def observe(self, steps: Sequence[StepId]) -> tuple[Observation, ...]:
        self._faults.trip("observe")
        return tuple(self._with_address(seen) for seen in self.inner.observe(steps))

    def capacity(self) -> tuple[NodeCapacity, ...]:
        self._faults.trip("capacity")
        return tuple(n for n in self.inner.capacity() if n.node not in self.place.hidden)

    def health(self, nodes: Sequence[NodeId] = ()) -> tuple[NodeReading, ...]:
        self._faults.trip("health")
        return tuple(n for n in self.inner.health(nodes) if n.node not in self.place.hidden)

    def forget(self, step: StepId) -> None:
        self._faults.trip("before forget")
        seen = self.place.world.observe(step)
        is_there = step in self.place.world.started_steps()
        try:
            self.inner.forget(step)
        finally:
            if is_there and step not in self.place.world.started_steps():
                self.place.note_forgotten(step, seen.cpu_ns)
            self._faults.trip("after forget")

    def logs(self, step: StepId, cursor: int, limit_bytes: int) -> LogChunk:
        return self.inner.logs(step, cursor, limit_bytes)

    def _with_address(self, seen: Observation) -> Observation:
        """A running replica is ready at once; its address names it and nothing listens there."""
        step = self.place.started.get(seen.step)
        if step is None or step.endpoint is None or seen.phase is not TaskPhase.RUNNING:
            return seen
        return replace(seen, address=f"simulated:{seen.step}", is_ready=True)


class TellingEngine(PolledEngine):
    """The same for an engine that says by itself what changed."""

    def changes(self) -> tuple[Observation, ...]:
        self._faults.trip("changes")
        return tuple(self._with_address(seen) for seen in self.inner.changes())


class Engines:
    """Makes each pool's engine once per process, as the composition root does."""

    def __init__(self, places: dict[str, Place], faults: Faults) -> None:
        self._places = places
        self._faults = faults
        self.by_pool: dict[str, PolledEngine] = {}

    def engine_for(self, pool: Pool) -> Engine:
        if pool.name not in self.by_pool:
            place = self._places[pool.name]
            kind = PolledEngine if place.is_polled else TellingEngine
            self.by_pool[pool.name] = kind(place, self._faults)
        return self.by_pool[pool.name]


class Meters:
    """Node counters from the worlds; a node that is cut off or `broken` cannot be read."""

    def __init__(
        self, places: dict[str, Place], clock: TrueClock, faults: Faults, broken: set[NodeId]
    ) -> None:
        self._place_by_node = {
            capacity.node: place for place in places.values() for capacity in place.world.capacity()
        }
        self._clock = clock
        self._faults = faults
        self._broken = broken

    def read(self, node: NodeCapacity) -> NodeCounter:
        self._faults.trip("meter")
        place = self._place_by_node[node.node]
        if not any(n.node == node.node and n.is_reachable for n in place.world.capacity()):
            raise SourceUnavailable(f"read the counter of {node.node}: it is cut off")
        if node.node in self._broken:
            raise SourceUnavailable(f"read the counter of {node.node}: it is broken")
        now_ns = self._clock.now_ns()
        return NodeCounter(at_ns=now_ns, cpu_ns=place.busy_ns(node.node, now_ns), method="sim")


class GuardedStore:
    """One process's store with faults at every write; reads of the log can fail too.

    An error after a write costs the lead, as the store's contract says.
    """

    def __init__(self, inner: Store, faults: Faults) -> None:
        self.inner = inner
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open_epoch(self) -> int:
        self._faults.trip("before epoch")
        epoch = self.inner.open_epoch()
        self._faults.trip("after epoch")
        return epoch

    def commit(self, batch: Batch) -> None:
        self._faults.before_commit()
        self.inner.commit(batch)
        try:
            self._faults.after_commit()
        except Exception:
            self.inner.close()
            raise

    def events(self, after: int, limit: int = 0, project: str = "") -> Iterator[Event]:
        self._faults.before_read()
        return self.inner.events(after, limit, project)


@dataclass(slots=True)
class Disk:
    """What is durable: opens a store for a process, and one to read for the judge."""

    open: Callable[[], Store]
    reader: Store
    take_lead_away: Callable[[], None]
    can_lose_lead: bool
    close: Callable[[], None]


def memory_disk() -> Disk:
    """Return a disk in memory."""
    disk = MemoryDisk()

    def take_lead_away() -> None:
        disk.leader = None

    return Disk(
        open=lambda: MemoryStore(disk),
        reader=MemoryStore(disk),
        take_lead_away=take_lead_away,
        can_lose_lead=True,
        close=lambda: None,
    )


def sqlite_disk() -> Disk:
    """Return a real database in a folder of its own; the lead cannot be taken from its holder."""
    from moulin.store.opening import open_store

    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="moulin-sim-", dir=shared if shared.is_dir() else None))
    path = folder / "moulin.sqlite"
    path.write_bytes(_empty_database())
    reader = open_store(path)

    def close() -> None:
        reader.close()
        shutil.rmtree(folder)

    return Disk(
        open=lambda: open_store(path),
        reader=reader,
        take_lead_away=lambda: None,
        can_lose_lead=False,
        close=close,
    )


@cache
def _empty_database() -> bytes:
    """Return a migrated database as bytes: migrating costs more than a whole seed."""
    from moulin.store.opening import open_store

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "moulin.sqlite"
        open_store(path).close()
        return path.read_bytes()
