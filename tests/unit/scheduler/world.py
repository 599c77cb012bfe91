"""A small factory to decide about: folds events, runs cycles, and answers for engines on request."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from moulin.domain.events import (
    Event,
    FactoryApplied,
    NodeJoined,
    ObjectChange,
    Payload,
    TaskObserved,
    WorkloadSubmitted,
)
from moulin.domain.factory import DeclaredObject, Organisation, Pool, Project, Site, Zone, kind_of
from moulin.domain.ids import NodeId, OrganisationId, ProjectId, StepId, WorkloadId
from moulin.domain.observation import NodeCapacity, TaskPhase
from moulin.domain.plan import Plan
from moulin.domain.workload import (
    EndpointSpec,
    Resources,
    Submission,
    TaskTemplate,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.scheduler import SchedulerPolicy, State, decide, empty_state, fold, plan_events

SECOND = 10**9
GB = 10**9
BASE: tuple[DeclaredObject, ...] = (
    Organisation(name="acme"),
    Site(name="lyon", country="FR"),
    Zone(name="a", site="lyon"),
    Pool(name="pa", zone="a", engine="local", machine_class="cpu"),
    Project(name="web", organisation="acme"),
)


def node(
    name: str, cpus: int = 4, memory: int = 16, devices: int = 0, **more: object
) -> NodeCapacity:
    """Return a node of `cpus` CPUs, `memory` GB and `devices` accelerators of class h100."""
    capacity = NodeCapacity(
        node=NodeId(name),
        cpu_milli=cpus * 1000,
        memory_bytes=memory * GB,
        machine_class="cpu",
        accelerators=devices,
        accelerator_class="h100" if devices else "",
    )
    return replace(capacity, **more)  # type: ignore[arg-type]


def job(cpus: int = 1, memory: int = 1, devices: int = 0, **more: object) -> WorkloadSpec:
    """Return a job whose tasks need `cpus`, `memory` GB and `devices`."""
    resources = Resources(cpu_milli=cpus * 1000, memory_bytes=memory * GB, accelerators=devices)
    spec = WorkloadSpec(
        kind=WorkloadKind.JOB, name="job", resources=resources, task=TaskTemplate(command=("true",))
    )
    return replace(spec, **more)  # type: ignore[arg-type]


def endpoint(replicas: int = 1, cpus: int = 1, **more: object) -> WorkloadSpec:
    """Return an endpoint."""
    base = job(cpus, kind=WorkloadKind.ENDPOINT, task=None)
    return replace(base, endpoint=EndpointSpec(model="m", replicas=replicas), **more)  # type: ignore[arg-type]


def submission(
    name: str, spec: WorkloadSpec, at_ns: int = 0, project: str = "web", organisation: str = "acme"
) -> Submission:
    """Return a submission under a name that is its id."""
    return Submission(
        id=WorkloadId(name),
        organisation=OrganisationId(organisation),
        project=ProjectId(project),
        spec=spec,
        submitted_by="ada",
        submitted_at_ns=at_ns,
    )


@dataclass(slots=True)
class World:
    """A state with its log. `now_ns` only moves when told."""

    state: State = field(default_factory=empty_state)
    log: list[Event] = field(default_factory=list)
    now_ns: int = 0
    policy: SchedulerPolicy = field(default_factory=SchedulerPolicy)

    def add(self, payload: Payload) -> None:
        """Append an event and fold it."""
        event = Event(
            sequence=len(self.log) + 1, epoch=1, at_ns=self.now_ns, actor="test", payload=payload
        )
        self.log.append(event)
        fold(self.state, event)

    def declare(self, *objects: DeclaredObject) -> None:
        """Apply declared objects."""
        changes = [ObjectChange(kind=kind_of(each), name=each.name, value=each) for each in objects]
        self.add(FactoryApplied(managed_by="test", changes=tuple(changes)))

    def join(self, *nodes: NodeCapacity, pool: str = "pa") -> None:
        """Let nodes join a pool."""
        for each in nodes:
            self.add(NodeJoined(pool=pool, capacity=each))

    def submit(self, name: str, spec: WorkloadSpec, project: str = "web") -> WorkloadId:
        """Submit at the present time."""
        given = submission(name, spec, self.now_ns, project)
        self.add(WorkloadSubmitted(submission=given, reserved_neur=0, policy_decision=""))
        return given.id

    def decide(self) -> Plan:
        """Decide without applying."""
        return decide(self.state, self.now_ns, self.policy)

    def cycle(self) -> Plan:
        """Decide and apply."""
        plan = self.decide()
        for payload in plan_events(plan):
            self.add(payload)
        return plan

    def see(
        self, step: str, phase: TaskPhase, exit_code: int | None = None, **more: object
    ) -> None:
        """Report one reading of a step at the present time."""
        seen = TaskObserved(
            step=StepId(step), phase=phase, observed_at_ns=self.now_ns, exit_code=exit_code
        )
        self.add(replace(seen, **more))  # type: ignore[arg-type]

    def run(self, step: str, **more: object) -> None:
        """Report that a step runs."""
        self.see(step, TaskPhase.RUNNING, None, **more)

    def exit(self, step: str, exit_code: int = 0) -> None:
        """Report that a step ended by itself."""
        self.see(step, TaskPhase.EXITED, exit_code)

    def gone(self, step: str) -> None:
        """Report proof that a step is gone."""
        self.see(step, TaskPhase.GONE, evidence="no such process")

    def placed(self) -> list[str]:
        """Decide, apply, and return the workloads that were placed, in order."""
        return [place.workload for place in self.cycle().places]


def world(*nodes: NodeCapacity, more: Sequence[DeclaredObject] = ()) -> World:
    """Return a world with one open zone in France, the given nodes and more declared objects."""
    made = World()
    made.declare(*BASE, *more)
    made.join(*nodes)
    return made
