"""A real control plane over a store, simulated machines and a clock that a test moves.

Nothing is mocked: the cycle, the decider, the ledger and the signer are the real ones. What a test
may bend is the world: time, nodes, faults of the store, readiness of replicas.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from moulin.controlplane.commands import (
    Answer,
    Applied,
    ApplyFactory,
    Command,
    CreateKey,
    Idempotency,
    ScaleEndpoint,
    StopWorkload,
    SubmitWorkload,
)
from moulin.controlplane.cycle import cycle
from moulin.controlplane.inbox import Inbox
from moulin.controlplane.plane import Plane, PlaneSettings, Ports
from moulin.controlplane.recover import take_lead
from moulin.domain.errors import (
    EngineRefused,
    EngineUnavailable,
    InUse,
    Refused,
    SourceUnavailable,
)
from moulin.domain.events import Event, Payload
from moulin.domain.factory import (
    DeclaredObject,
    Organisation,
    Pool,
    Price,
    PriceBook,
    Project,
    Quota,
    Site,
    Zone,
)
from moulin.domain.ids import KeyId, NodeId, OrganisationId, ProjectId, StepId, WorkloadId, make_id
from moulin.domain.observation import Claim, NodeCapacity, Observation, TaskPhase
from moulin.domain.plan import StartStep
from moulin.domain.principal import ApiKey, Principal, Role
from moulin.domain.terms import ModelTerms
from moulin.domain.usage import Meter
from moulin.domain.views import WorkloadView
from moulin.domain.workload import (
    EndpointSpec,
    Resources,
    TaskTemplate,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.engines.simulated.engine import SimulatedEngine
from moulin.engines.simulated.world import World
from moulin.ledger import VerifierKey
from moulin.ports.engine import Engine
from moulin.ports.launcher import ModelFacts, ModelWork
from moulin.ports.meter import NodeCounter
from moulin.ports.store import Store
from moulin.scheduler import SchedulerPolicy
from moulin.store.memory import MemoryDisk, MemoryStore, WritePoint

T = TypeVar("T")
START_NS = 1_790_000_000_000_000_000
SECOND = 1_000_000_000
EURO = 1_000_000_000
GIB = 2**30
FILE = "factory.yaml"
FACTORY = "mill"
MODEL = "small-model"
BIG_MODEL = "big-model"
SYSTEM_CPU_NS_PER_S = 50_000_000
SETTINGS = PlaneSettings(
    factory_name=FACTORY,
    version="test",
    boot_id="boot-1",
    cycle_wait_s=0.0,
    observe_period_s=0.2,
    capacity_period_s=1.0,
    sweep_period_s=30.0,
    metering_interval_s=10.0,
)
ADMIN = Principal(
    key=KeyId("key_admin"),
    name="ada",
    role=Role.ADMIN,
    organisation=OrganisationId("lab"),
    project=ProjectId("atelier"),
)


class MovedClock:
    """Time as a test says."""

    def __init__(self) -> None:
        self.time_ns = START_NS

    def now_ns(self) -> int:
        return self.time_ns


class CountedDice:
    """Entropy that never repeats."""

    def __init__(self) -> None:
        self._drawn = 0

    def entropy(self) -> int:
        self._drawn += 1
        return self._drawn


class FixedSigner:
    """A real Ed25519 key, the same in every run."""

    key_name = f"moulin/{FACTORY}"
    operator_secret = b"operator secret of a test"

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
        self.public_key = self._private.public_key().public_bytes_raw()

    @property
    def verifier(self) -> VerifierKey:
        return VerifierKey(name=self.key_name, public_key=self.public_key)

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)


class Shelf:
    """A launcher with two models on disk: one that fits a node and one that fits none."""

    memory_bytes: ClassVar[dict[str, int]] = {MODEL: 2 * GIB, BIG_MODEL: 900 * GIB}

    def __init__(self) -> None:
        self.terms: dict[str, ModelTerms] = {}
        self.work: ModelWork | None = ModelWork(parameters=10**9, weights_bytes=10**9)

    def facts(self, endpoint: EndpointSpec) -> ModelFacts:
        if endpoint.model not in self.memory_bytes:
            raise Refused(f"serve {endpoint.model}: its weights are not on disk")
        return ModelFacts(
            name=endpoint.model,
            digest=f"sha256:{endpoint.model}",
            memory_bytes=self.memory_bytes[endpoint.model],
            context_tokens=endpoint.context_tokens,
            variant="q8",
            terms=self.terms.get(endpoint.model),
            work=self.work,
        )

    def task(self, step: StartStep) -> TaskTemplate:
        assert step.endpoint is not None
        return TaskTemplate(command=("serve", step.endpoint.model))

    def replica_key(self, attempt: str) -> str:
        return f"key of {attempt}"


class Machines(SimulatedEngine):
    """One pool's simulated machines. Replicas are ready when they run, unless in `unready`.

    `start_faults` are raised by the next starts, one each; `is_deaf` fails every question.
    `forgotten` are the steps that were to be forgotten, in order, `used_ns` what was known of them;
    `unforgettable` ones are refused.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.asked: list[StartStep] = []
        self.stopped: list[StepId] = []
        self.start_faults: list[Exception] = []
        self.unready: set[str] = set()
        self.forgotten: list[StepId] = []
        self.unforgettable: set[StepId] = set()
        self.used_ns: dict[StepId, int] = {}
        self.is_deaf = False

    def anew(self) -> "Machines":
        """Return another process's connection to the same machines."""
        other = Machines(self.world)
        other.asked, other.unready = self.asked, self.unready
        other.forgotten, other.used_ns = self.forgotten, self.used_ns
        return other

    def start(self, step: StartStep) -> Claim:
        self.asked.append(step)
        if self.start_faults:
            raise self.start_faults.pop(0)
        return super().start(step)

    def stop(self, step: StepId, grace_s: int) -> None:
        self.stopped.append(step)
        super().stop(step, grace_s)

    def forget(self, step: StepId) -> None:
        self.forgotten.append(step)
        if step in self.unforgettable:
            raise InUse(f"forget {step}: a test says so")
        self.used_ns.setdefault(step, self.world.observe(step).cpu_ns)
        super().forget(step)

    def capacity(self) -> tuple[NodeCapacity, ...]:
        if self.is_deaf:
            raise EngineUnavailable("ask the machines: no answer")
        return super().capacity()

    def _observe(self, step: StepId) -> Observation:
        seen = super()._observe(step)
        endpoints = {asked.step: asked.workload for asked in self.asked if asked.endpoint}
        if seen.phase is not TaskPhase.RUNNING or step not in endpoints:
            return seen
        if endpoints[step] in self.unready:
            return seen
        return replace(seen, address=f"replica.test:{len(step)}", is_ready=True)


@dataclass(slots=True)
class Meters:
    """Counters of nodes: what their tasks used and what the system uses.

    `broken` cannot be read; `is_without` is a floor whose machines have none, as a cluster's do.
    """

    bench: "Bench"
    broken: set[str] = field(default_factory=set)
    resets: dict[str, int] = field(default_factory=dict)
    is_without: bool = False

    def read(self, node: NodeCapacity) -> NodeCounter | None:
        if self.is_without:
            return None
        if node.node in self.broken:
            raise SourceUnavailable(f"read the counter of {node.node}")
        now_ns = self.bench.clock.now_ns()
        cpu_ns = (now_ns - START_NS) * SYSTEM_CPU_NS_PER_S // SECOND
        for machines in self.bench.machines.values():
            cpu_ns += sum(
                machines.used_ns.get(asked.step) or machines.world.observe(asked.step).cpu_ns
                for asked in {each.step: each for each in machines.asked}.values()
                if asked.nodes[asked.rank] == node.node
            )
        return NodeCounter(
            at_ns=now_ns, cpu_ns=cpu_ns - self.resets.get(node.node, 0), method="test"
        )


class Bench:
    """One factory. `plane` leads; `reopen` is the death of its process and the start of another."""

    def __init__(
        self,
        *,
        settings: PlaneSettings = SETTINGS,
        open_store: Callable[[], Store] | None = None,
        nodes: int = 2,
        cpus: int = 4,
    ) -> None:
        self.clock = MovedClock()
        self.settings = settings
        self.disk = MemoryDisk()
        self.fault: Callable[[WritePoint], None] | None = None
        self.signer = FixedSigner()
        self.dice = CountedDice()
        self.shelf = Shelf()
        self.machines: dict[str, Machines] = {}
        self.nodes, self.cpus = nodes, cpus
        self.meters = Meters(self)
        self.connect: Callable[[Pool], Engine] = self.engine_for
        self._open_store = open_store or self._memory
        self.store: Store
        self.plane: Plane
        self.open()

    def _memory(self) -> Store:
        def trip(point: WritePoint) -> None:
            if self.fault is not None:
                self.fault(point)

        return MemoryStore(self.disk, fault=trip)

    def open(self) -> None:
        self.store = self._open_store()
        self.plane = take_lead(
            Ports(
                store=self.store,
                clock=self.clock,
                ids=self.dice,
                engine_for=self._connected,
                launcher=self.shelf,
                meter=self.meters,
                signer=self.signer,
            ),
            self.settings,
            SchedulerPolicy(),
            Inbox(),
        )

    def reopen(self) -> None:
        """Let the process die and another take the lead; its engines adopt what runs."""
        self.store.close()
        for pool, before in self.machines.items():
            self.machines[pool] = before.anew()
        self.open()

    def engine_for(self, pool: Pool) -> Engine:
        """Return a pool's machines: one world per name and settings."""
        if pool.engine != "simulated":
            raise EngineRefused(f"connect pool {pool.name!r}: there is no engine {pool.engine!r}")
        key = f"{pool.name}{dict(pool.settings) or ''}"
        if key not in self.machines:
            nodes = machines_of(
                pool.name,
                int(pool.settings.get("nodes", self.nodes)),
                int(pool.settings.get("cpus", self.cpus)),
                int(pool.settings.get("asked_time_limit_s", 0)),
            )
            self.machines[key] = Machines(World(self.clock, nodes))
        return self.machines[key]

    def _connected(self, pool: Pool) -> Engine:
        return self.connect(pool)

    @property
    def floor(self) -> Machines:
        """The machines of the pool that `factory` declares."""
        return self.machines["floor"]

    # -- time ---------------------------------------------------------------------------------

    def turn(self, seconds: float = 0.0) -> int:
        """Let time pass, then run one cycle."""
        self.clock.time_ns += int(seconds * SECOND)
        return cycle(self.plane, 0.0)

    def turns(self, count: int, seconds: float) -> None:
        for _ in range(count):
            self.turn(seconds)

    # -- commands -----------------------------------------------------------------------------

    def ask(self, command: Command) -> "Future[Answer]":
        return self.plane.inbox.call(command)

    def tell(self, command: Command) -> Any:
        """Give a command, run one cycle and return its answer (or raise its error)."""
        asked = self.ask(command)
        self.turn()
        return asked.result(timeout=0)

    def apply(self, *objects: DeclaredObject, file: str = FILE, dry: bool = False) -> Applied:
        command = ApplyFactory(
            principal=ADMIN, managed_by=file, objects=tuple(objects), is_dry_run=dry
        )
        return cast("Applied", self.tell(command))

    def submission(
        self,
        spec: WorkloadSpec | None = None,
        *,
        project: str = "atelier",
        key: str = "",
        body: str = "body",
    ) -> SubmitWorkload:
        spec = spec or job()
        drawn = make_id("wrk", self.clock.now_ns(), self.dice.entropy())
        return SubmitWorkload(
            principal=ADMIN,
            project=ProjectId(project),
            spec=spec,
            id=WorkloadId(drawn),
            idempotency=Idempotency(key=key, body_hash=body) if key else None,
        )

    def submit(self, spec: WorkloadSpec | None = None, **more: str) -> WorkloadView:
        return cast("WorkloadView", self.tell(self.submission(spec, **more)))

    def stop(self, workload: str) -> WorkloadView:
        return cast(
            "WorkloadView", self.tell(StopWorkload(principal=ADMIN, workload=WorkloadId(workload)))
        )

    def scale(self, workload: str, replicas: int) -> WorkloadView:
        command = ScaleEndpoint(principal=ADMIN, workload=WorkloadId(workload), replicas=replicas)
        return cast("WorkloadView", self.tell(command))

    def create_key(self, name: str = "k1", project: str = "atelier") -> ApiKey:
        key = ApiKey(
            id=KeyId(f"key_{name}"),
            name=name,
            role=Role.MEMBER,
            organisation=OrganisationId("lab"),
            project=ProjectId(project),
            digest=f"digest of {name}",
            created_at_ns=self.clock.now_ns(),
        )
        return cast("ApiKey", self.tell(CreateKey(principal=ADMIN, key=key)))

    # -- reading ------------------------------------------------------------------------------

    def events(self, kind: type[T]) -> list[T]:
        """Return the durable payloads of a kind, in order."""
        return [e.payload for e in self.store.events(0) if isinstance(e.payload, kind)]

    def log(self) -> list[Event]:
        return list(self.store.events(0))

    def row(self, workload: str) -> WorkloadView:
        found = self.store.workload(workload)
        assert found is not None
        return found

    def state(self, workload: str) -> str:
        return self.row(workload).state

    def money(self, project: str = "atelier") -> Any:
        return self.plane.books.balances.projects[project]

    def available(self, project: str = "atelier") -> int | None:
        return self.plane.books.balances.available_neur(project)


def machines_of(
    pool: str, count: int, cpus: int, asked_time_limit_s: int = 0
) -> list[NodeCapacity]:
    return [
        NodeCapacity(
            node=NodeId(f"{pool}-{number}"),
            cpu_milli=cpus * 1000,
            memory_bytes=16 * GIB,
            machine_class="test-machine",
            boot_id=f"boot of {pool}-{number}",
            idle_mw=40_000,
            peak_mw=120_000,
            power_source="a test's table",
            asked_time_limit_s=asked_time_limit_s,
        )
        for number in range(count)
    ]


def factory(
    *,
    budget_neur: int = 100 * EURO,
    quota: Quota | None = None,
    prices: Sequence[Price] = (),
    zones: Sequence[Zone] = (),
    pools: Sequence[Pool] = (),
) -> tuple[DeclaredObject, ...]:
    """A small operator file: one site, one open zone, one pool, two projects, prices."""
    return (
        Organisation(name="lab"),
        Organisation(name="other"),
        Site(
            name="hill",
            country="FR",
            pue_ppm=1_200_000,
            carbon_location_ng_per_kwh=50_000_000_000,
            carbon_market_ng_per_kwh=10_000_000_000,
            energy_price_neur_per_kwh=EURO // 5,
        ),
        Zone(name="east", site="hill"),
        *zones,
        Pool(name="floor", zone="east", engine="simulated", machine_class="test-machine"),
        *pools,
        Project(
            name="atelier",
            organisation="lab",
            budget_neur=budget_neur,
            quota=quota or Quota(),
        ),
        Project(name="guest", organisation="other", budget_neur=10 * EURO),
        PriceBook(name="prices", effective_from_ns=0, prices=tuple(prices) or PRICES),
    )


# One euro for a CPU-hour, four for a million tokens in or out.
PRICES = (
    Price(sku="cpu", meter=Meter.CPU_MILLI_MS.value, unit_price_neur=EURO, per=1000 * 3600 * 1000),
    Price(sku="tokens in", meter=Meter.TOKENS_INPUT.value, unit_price_neur=4 * EURO, per=10**6),
    Price(sku="tokens out", meter=Meter.TOKENS_OUTPUT.value, unit_price_neur=4 * EURO, per=10**6),
)


def job(
    seconds: float | None = 5,
    *,
    cpus: int = 1,
    exit_code: int = 0,
    time_limit_s: int = 3600,
    env: dict[str, str] | None = None,
    **more: Any,
) -> WorkloadSpec:
    """A simulated job; without `seconds` it runs until it is stopped."""
    behaviour = {"MOULIN_SIMULATED_EXIT": str(exit_code), **(env or {})}
    if seconds is not None:
        behaviour["MOULIN_SIMULATED_S"] = str(seconds)
    return WorkloadSpec(
        kind=WorkloadKind.JOB,
        name=more.pop("name", "a job"),
        resources=Resources(cpu_milli=1000 * cpus, memory_bytes=GIB),
        task=TaskTemplate(command=("true",), env=behaviour),
        time_limit_s=time_limit_s,
        **more,
    )


def endpoint(
    name: str = "chat", *, model: str = MODEL, replicas: int = 1, **more: Any
) -> WorkloadSpec:
    """An endpoint whose replicas take one CPU each."""
    return WorkloadSpec(
        kind=WorkloadKind.ENDPOINT,
        name=name,
        resources=Resources(cpu_milli=1000, memory_bytes=GIB),
        endpoint=EndpointSpec(model=model, replicas=replicas),
        **more,
    )


def kinds(payloads: Sequence[Payload]) -> list[str]:
    return [type(payload).__name__ for payload in payloads]
