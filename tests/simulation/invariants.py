"""What must hold after every step, judged from the committed log and from the worlds themselves.

The judge folds the log for itself and keeps plain tallies of its own; it believes no book of the
control plane. Money and evidence are judged in `money.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from moulin.controlplane.books import Books, fold_all
from moulin.controlplane.commands import (
    Answer,
    ApplyFactory,
    Command,
    CreateKey,
    RevokeKey,
    RolloutEndpoint,
    ScaleEndpoint,
    StopWorkload,
    SubmitWorkload,
)
from moulin.controlplane.draft import Draft
from moulin.controlplane.endpoints import frozen_endpoints
from moulin.controlplane.schedule import exhausted_workloads
from moulin.domain.control import Applied
from moulin.domain.errors import MoulinError
from moulin.domain.events import (
    AttemptPlaced,
    CycleDecided,
    EndpointRolledOut,
    EpochOpened,
    Event,
    FactoryApplied,
    KeyCreated,
    KeyRevoked,
    NodeJoined,
    WorkloadFinished,
    WorkloadScaled,
    WorkloadStopRequested,
    WorkloadSubmitted,
)
from moulin.domain.factory import (
    CountryBasis,
    Organisation,
    Pool,
    Project,
    Site,
    Zone,
    ZoneState,
)
from moulin.domain.ids import NodeId, StepId, step_id
from moulin.domain.views import WorkloadView
from moulin.domain.workload import Submission, WorkloadKind
from moulin.ports.store import Store
from moulin.scheduler import SchedulerPolicy, decide, plan_digest, site_draw_w
from moulin.scheduler.nodes import Column
from tests.simulation.tenants import Wish
from tests.simulation.world import Place


class Violation(AssertionError):
    """An invariant does not hold."""


def must(condition: bool, statement: str) -> None:
    """Raise `Violation` unless the condition holds."""
    if not condition:
        raise Violation(statement)


@dataclass(slots=True)
class Declared:
    """Declared objects by kind and name, from the log alone."""

    objects: dict[tuple[type, str], object] = field(default_factory=dict)

    def apply(self, applied: FactoryApplied) -> None:
        for change in applied.changes:
            for kind, name in list(self.objects):
                if name == change.name and kind.__name__.lower() == change.kind.replace("_", ""):
                    del self.objects[(kind, name)]
            if change.value is not None:
                self.objects[(type(change.value), change.name)] = change.value

    def zone(self, name: str) -> Zone:
        found = self.objects[(Zone, name)]
        assert isinstance(found, Zone)
        return found

    def site(self, zone: str) -> Site:
        found = self.objects[(Site, self.zone(zone).site)]
        assert isinstance(found, Site)
        return found

    def pool(self, name: str) -> Pool:
        found = self.objects[(Pool, name)]
        assert isinstance(found, Pool)
        return found

    def project(self, name: str) -> Project:
        found = self.objects[(Project, name)]
        assert isinstance(found, Project)
        return found

    def countries_of(self, organisation: str) -> tuple[str, ...]:
        found = self.objects.get((Organisation, organisation))
        return found.countries if isinstance(found, Organisation) else ()


@dataclass(slots=True)
class Judge:
    """Reads what is durable and what is real; `books` are the log folded once, from scratch."""

    reader: Store
    places: dict[str, Place]
    policy: SchedulerPolicy
    books: Books = field(default_factory=Books)
    declared: Declared = field(default_factory=Declared)
    epoch: int = 0
    at_ns: int = 0
    submissions: dict[str, Submission] = field(default_factory=dict)
    pool_by_node: dict[NodeId, str] = field(default_factory=dict)
    placed: dict[StepId, NodeId] = field(default_factory=dict)
    generations: dict[tuple[str, int], int] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    stops: set[str] = field(default_factory=set)
    scaled: set[tuple[str, int]] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    keys_created: set[str] = field(default_factory=set)
    keys_revoked: set[str] = field(default_factory=set)
    runs_seen: dict[str, int] = field(default_factory=dict)
    ran: set[StepId] = field(default_factory=set)
    open_runs: dict[str, dict[StepId, int]] = field(default_factory=dict)
    decided: int = 0
    drawn_w: int = 0

    # -- the log ------------------------------------------------------------------------------

    def read_log(self, tell: Callable[[Event], None]) -> list[Event]:
        """Read what became durable since the last time, judging and telling event by event."""
        events = list(self.reader.events(self.books.sequence))
        for event in events:
            self._judge_order(event)
            if isinstance(event.payload, CycleDecided):
                self._judge_decision(event, event.payload)
            if isinstance(event.payload, AttemptPlaced):
                self.drawn_w = self._draw_w(event.payload)
            fold_all(self.books, event)
            self._judge(event)
            tell(event)
        return events

    def _judge_order(self, event: Event) -> None:
        must(event.sequence == self.books.sequence + 1, f"the log has a gap at {event.sequence}")
        must(event.at_ns >= self.at_ns, f"event {event.sequence} is earlier than the one before")
        self.at_ns = event.at_ns
        if isinstance(event.payload, EpochOpened):
            must(event.payload.epoch > self.epoch, "an epoch opens once and above the last")
            self.epoch = event.payload.epoch
        must(event.epoch == self.epoch, f"event {event.sequence} is of epoch {event.epoch}")

    def _judge_decision(self, event: Event, decided: CycleDecided) -> None:
        must(
            decided.input_sequence == self.books.sequence and decided.now_ns == event.at_ns,
            "a decision was made from another state than the log's",
        )
        projects = self.books.balances.projects
        exhausted = tuple(
            name
            for name in sorted(projects)
            if 0 <= projects[name].budget_neur <= projects[name].spent_neur
        )
        drafted = Draft(self.books, self.epoch, event.at_ns)
        policy = replace(
            self.policy,
            projects_exhausted=exhausted,
            workloads_exhausted=exhausted_workloads(drafted),
            endpoints_frozen=frozen_endpoints(drafted),
        )
        plan = decide(self.books.schedule, decided.now_ns, policy)
        must(plan_digest(plan) == decided.plan_digest, "a replayed decision has another digest")
        self.decided += 1

    def _judge(self, event: Event) -> None:
        match event.payload:
            case FactoryApplied() as applied:
                self.declared.apply(applied)
            case NodeJoined(pool=pool, capacity=capacity):
                self.pool_by_node[capacity.node] = pool
            case WorkloadSubmitted(submission=submission):
                must(submission.id not in self.submissions, f"{submission.id} is admitted twice")
                self.submissions[submission.id] = submission
            case AttemptPlaced() as placed:
                self._judge_placement(placed)
            case WorkloadFinished(workload=workload):
                must(workload not in self.finished, f"{workload} ends twice")
                self.finished.add(workload)
            case _:
                self._judge_request(event)

    def _judge_request(self, event: Event) -> None:
        match event.payload:
            case WorkloadStopRequested(workload=workload, units=units):
                if not units:
                    self.stops.add(workload)
            case WorkloadScaled(workload=workload, replicas=replicas):
                self.scaled.add((workload, replicas))
                self.changed.add(workload)
            case EndpointRolledOut(workload=workload, spec=spec):
                self.changed.add(workload)
                self.submissions[workload] = replace(self.submissions[workload], spec=spec)
            case KeyCreated(key=key):
                self.keys_created.add(key.id)
            case KeyRevoked(key=key):
                self.keys_revoked.add(key)
            case _:
                pass

    # -- placements ---------------------------------------------------------------------------

    def _judge_placement(self, placed: AttemptPlaced) -> None:
        submission = self.submissions[placed.workload]
        must(placed.workload not in self.finished, f"{placed.attempt} is placed after its end")
        must(submission.id not in self.stops, f"{placed.attempt} is placed after its stop")
        unit = (placed.workload, placed.unit)
        before = self.generations.get(unit, 0)
        must(placed.generation > before, f"{placed.attempt}: its generation was used")
        self.generations[unit] = placed.generation
        self._judge_former_end(placed, before)
        is_endpoint = submission.spec.kind is WorkloadKind.ENDPOINT
        tasks = 1 if is_endpoint else submission.spec.nodes
        nodes = [task.node for task in placed.tasks]
        must(
            [task.rank for task in placed.tasks] == list(range(tasks)) and len(set(nodes)) == tasks,
            f"{placed.attempt} is not placed whole: {placed.tasks}",
        )
        zones = {self.declared.pool(self.pool_by_node[node]).zone for node in nodes}
        must(len(zones) == 1, f"{placed.attempt} is spread over {sorted(zones)}")
        self._judge_law(placed, submission, zones.pop())
        self._judge_limits(placed, submission)
        for task in placed.tasks:
            self.placed[step_id(placed.attempt, task.rank)] = task.node

    def _judge_former_end(self, placed: AttemptPlaced, generation: int) -> None:
        """Nothing of the former generation runs in any world: its end was proved, not assumed."""
        former = f"{placed.workload}.u{placed.unit}.g{generation}.t"
        for runs in self.open_runs.values():
            for step in runs:
                must(not step.startswith(former), f"{placed.attempt} is placed while {step} runs")
        for step in self.books.schedule.steps:
            must(not step.startswith(former), f"{placed.attempt} is placed while {step} is held")

    def _judge_law(self, placed: AttemptPlaced, submission: Submission, zone: str) -> None:
        what = f"{placed.attempt} in {zone}"
        must(self.declared.zone(zone).state is ZoneState.OPEN, f"{what}: the zone is not open")
        where, site = submission.spec.where, self.declared.site(zone)
        must(not where.zones or zone in where.zones, f"{what}: `where` names {where.zones}")
        for allowed in (where.countries, self.declared.countries_of(submission.organisation)):
            must(
                not allowed
                or (site.country in allowed and site.country_basis is not CountryBasis.GUESSED),
                f"{what} ({site.country}, {site.country_basis}): only {allowed} may be used",
            )

    def _judge_limits(self, placed: AttemptPlaced, submission: Submission) -> None:
        project = self.declared.project(submission.project)
        money = self.books.balances.projects[project.name]
        must(
            not 0 <= money.budget_neur <= money.spent_neur,
            f"{placed.attempt} is placed for {project.name}, whose budget is spent",
        )
        held = [
            task
            for task in self.books.schedule.steps.values()
            if self._project_of(task.attempt) == project.name
        ]
        workloads = {task.attempt.rsplit(".u", 1)[0] for task in held}
        for name, amount, limit in (
            ("CPU", sum(task.cpu_milli for task in held), project.quota.cpu_milli),
            ("memory", sum(task.memory_bytes for task in held), project.quota.memory_bytes),
            ("devices", sum(len(task.devices) for task in held), project.quota.accelerators),
            ("workloads", len(workloads), project.quota.workloads),
        ):
            must(limit < 0 or amount <= limit, f"{placed.attempt}: {amount} {name} over {limit}")
        site = self.declared.site(self.books.schedule.zone_of_node(placed.tasks[0].node))
        draw_w = self._draw_w(placed)
        # An envelope may have been lowered below what is drawn; then nothing may be added to it.
        limit_w = max(site.power_envelope_w, self.drawn_w)
        must(
            not site.power_envelope_w or draw_w <= limit_w,
            f"{placed.attempt}: {draw_w} W at {site.name}, which may draw {site.power_envelope_w}",
        )

    def _draw_w(self, placed: AttemptPlaced) -> int:
        schedule = self.books.schedule
        site = self.declared.site(schedule.zone_of_node(placed.tasks[0].node))
        return site_draw_w(schedule.declared, schedule.nodes.columns, site.name)

    def _project_of(self, attempt: str) -> str:
        return self.submissions[attempt.rsplit(".u", 1)[0]].project

    # -- the worlds ---------------------------------------------------------------------------

    def look_at_worlds(self) -> None:
        """Judge what really runs against what the log says is held."""
        for name in sorted(self.places):
            place = self.places[name]
            place.world.advance()
            self._take_runs(name, place)
            self._judge_held(place, self.open_runs[name])
        self._judge_capacity()

    def _take_runs(self, name: str, place: Place) -> None:
        history, runs = place.world.history, self.open_runs.setdefault(name, {})
        for step, index in list(runs.items()):
            if history[index].ended_at_ns:
                del runs[step]
        for index in range(self.runs_seen.get(name, 0), len(history)):
            run = history[index]
            must(run.step not in self.ran, f"{run.step} ran twice")
            must(self.placed.get(run.step) == run.node, f"{run.step} runs where it was not placed")
            self.ran.add(run.step)
            self._judge_generation(run.step)
            if not run.ended_at_ns:
                runs[run.step] = index
        self.runs_seen[name] = len(history)

    def _judge_generation(self, step: StepId) -> None:
        workload, unit, generation = _parts(step)
        newest = self.generations[(workload, unit)]
        must(generation == newest, f"{step} starts although generation {newest} is placed")
        for runs in self.open_runs.values():
            for other in runs:
                same_unit = _parts(other)[:2] == (workload, unit)
                must(
                    not same_unit or _parts(other)[2] == generation,
                    f"{step} starts while {other} runs",
                )

    def _judge_held(self, place: Place, runs: Iterable[StepId]) -> None:
        cpu: dict[NodeId, int] = {}
        devices: dict[NodeId, list[int]] = {}
        held = self.books.schedule.steps
        for step in runs:
            must(step in held, f"{step} runs and nothing is held for it")
            started = place.started[step]
            node = started.nodes[started.rank]
            cpu[node] = cpu.get(node, 0) + started.resources.cpu_milli
            devices.setdefault(node, []).extend(started.devices)
        for capacity in place.world.capacity() if cpu else ():
            used = devices.get(capacity.node, [])
            must(
                cpu.get(capacity.node, 0) <= capacity.cpu_milli
                and len(set(used)) == len(used)
                and len(used) <= capacity.accelerators,
                f"{capacity.node} runs more than it has",
            )

    def _judge_capacity(self) -> None:
        """free + held = capacity, per node and device."""
        nodes = self.books.schedule.nodes
        columns = nodes.columns.tolist()
        held: dict[NodeId, list[int]] = {name: [0, 0, 0, 0] for name in nodes.names}
        masks = dict.fromkeys(nodes.names, 0)
        for task in self.books.schedule.steps.values():
            sums = held[task.node]
            sums[0] += task.cpu_milli
            sums[1] += task.memory_bytes
            sums[2] += len(task.devices)
            sums[3] += 1
            for device in task.devices:
                must(not masks[task.node] >> device & 1, f"{task.step} shares device {device}")
                masks[task.node] |= 1 << device
        for index, (name, row) in enumerate(zip(nodes.names, nodes.rows, strict=True)):
            capacity, sums = row.capacity, held[name]
            free = [columns[column][index] for column in _FREE]
            must(
                free[0] + sums[0] == capacity.cpu_milli
                and free[1] + sums[1] == capacity.memory_bytes
                and free[2] + sums[2] == capacity.accelerators
                and free[3] == sums[3]
                and min(free) >= 0
                and row.devices_free | masks[name] == (1 << capacity.accelerators) - 1,
                f"{name}: free {free} and held {sums} are not its capacity",
            )

    def working_nodes(self) -> set[NodeId]:
        """Return the nodes that hold something."""
        return {task.node for task in self.books.schedule.steps.values()}

    # -- books and answers --------------------------------------------------------------------

    def compare(self, books: Books) -> None:
        """A control plane's own books are what the log says."""
        must(books.sequence == self.books.sequence, "the books are not at the end of the log")
        theirs, mine = _schedule_of(books), _schedule_of(self.books)
        for name in mine:
            must(theirs[name] == mine[name], f"the schedule's {name} differ from the folded log")
        for name in (
            "balances",
            "keyring",
            "cursors",
            "gateways",
            "retention",
            "declared",
            "endpoints",
        ):
            must(
                getattr(books, name) == getattr(self.books, name),
                f"the book of {name} differs from the folded log",
            )

    def hear(self, command: Command, answer: Answer | MoulinError) -> None:
        """What somebody was answered is durable already."""
        if isinstance(answer, MoulinError):
            return
        match command:
            case SubmitWorkload():
                assert isinstance(answer, WorkloadView)
                must(
                    answer.id in self.submissions, f"{answer.id} was answered and is not in the log"
                )
            case StopWorkload(workload=workload):
                must(
                    workload in self.stops or workload in self.finished,
                    f"the stop of {workload} was answered and is not in the log",
                )
            case ScaleEndpoint(workload=workload, replicas=replicas, scaling=scaling):
                is_kept = scaling is not None or (workload, replicas) in self.scaled
                must(is_kept and workload in self.changed, f"the scaling of {workload} is lost")
            case RolloutEndpoint(workload=workload):
                must(workload in self.changed, f"the rollout of {workload} is lost")
            case CreateKey(key=key):
                must(key.id in self.keys_created, f"key {key.id} was answered and is lost")
            case RevokeKey(key=key):
                must(key in self.keys_revoked, f"the revocation of {key} was answered and is lost")
            case ApplyFactory() if isinstance(answer, Applied):
                for each in command.objects:
                    must((type(each), each.name) in self.declared.objects, f"{each.name} is lost")
            case _:
                pass

    def judge_wishes(self, wishes: Sequence[Wish]) -> None:
        """No submission is doubled, and what was granted once stays the same workload."""
        for wish in wishes:
            if len(wish.ids) > 1 or wish.granted:
                admitted = [each for each in wish.ids if each in self.submissions]
                must(len(admitted) <= 1, f"{wish.key} was admitted {len(admitted)} times")
                must(
                    not wish.granted or admitted == [wish.granted],
                    f"{wish.key} was answered with {wish.granted}, admitted is {admitted}",
                )


def _schedule_of(books: Books) -> dict[str, object]:
    """Return everything of a schedule as values to compare; its digest says the same, slower."""
    state = books.schedule
    return {
        "declared objects": state.declared,
        "nodes": (state.nodes.names, state.nodes.rows, state.nodes.columns.tolist()),
        "workloads": state.workloads,
        "attempts": state.attempts,
        "steps": list(state.steps),
        "waiting units": {demand: list(line) for demand, line in state.waiting.lines.items()},
        "due times": (
            state.backing_off.entries,
            state.time_limits.entries,
            state.deadlines.entries,
        ),
        "unsettled": list(state.unsettled),
        "held": (state.held_by_project, state.ports_held),
        "finished": list(state.finished),
        "gateways": (state.gateways, state.loads),
        "drains": state.drains,
        "attended": list(state.attended),
        "dependents": state.dependents,
    }


_FREE = (Column.CPU_FREE, Column.MEMORY_FREE, Column.DEVICES_FREE, Column.TASKS)


def _parts(step: str) -> tuple[str, int, int]:
    workload, unit, generation, _ = step.rsplit(".", 3)
    return workload, int(unit[1:]), int(generation[1:])
