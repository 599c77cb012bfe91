"""Whatever happens to a small factory, after every event the books of the state are exact.

Random submissions, ends, losses, late and doubled readings, scaling, stops, zones opening and closing,
nodes leaving and coming back, arrays stopped in part, holds, priorities and what waits for others;
checked: conservation per node and device, gangs whole, law and zones
and quotas and power at every placement, generations used once, and a replay that is bit-identical.
"""

from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moulin.domain.batch_events import WorkloadAdjusted
from moulin.domain.events import (
    AttemptPlaced,
    NodeLeft,
    NodeReachabilityChanged,
    WorkloadScaled,
    WorkloadStopRequested,
)
from moulin.domain.factory import (
    CountryBasis,
    DeclaredObject,
    Organisation,
    Pool,
    PreemptionScope,
    Project,
    Quota,
    Site,
    Zone,
    ZoneState,
)
from moulin.domain.ids import NodeId, WorkloadId
from moulin.domain.lease_events import LeaseExtended
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import Place, Plan
from moulin.domain.workload import (
    After,
    AfterWhen,
    JobArray,
    Resources,
    Retry,
    When,
    Where,
    WorkloadKind,
    WorkloadState,
)
from moulin.scheduler import (
    SchedulerPolicy,
    decide,
    explain,
    fold,
    live_steps,
    node_views,
    plan_digest,
    site_draw_w,
    workload_view,
)
from moulin.scheduler.ending import settle_later
from moulin.scheduler.state import empty_state, ticket_of
from tests.unit.scheduler.world import SECOND, World, endpoint, job, node

ZONES = ("a", "b", "c")
SITES = {"a": "lyon", "b": "lulea", "c": "rumour"}
FACTORY: tuple[DeclaredObject, ...] = (
    Organisation(name="acme"),
    Site(name="lyon", country="FR", power_envelope_w=1500, pue_ppm=1_200_000),
    Site(name="lulea", country="SE"),
    Site(name="rumour", country="FR", country_basis=CountryBasis.GUESSED),
    *(Zone(name=zone, site=SITES[zone]) for zone in ZONES),
    *(
        Pool(name=f"p{zone}", zone=zone, engine="sim", machine_class="m", preemption=scope)
        for zone, scope in zip(ZONES, reversed(PreemptionScope), strict=True)
    ),
    Project(name="web", organisation="acme"),
    Project(
        name="small",
        organisation="acme",
        quota=Quota(cpu_milli=4000, memory_bytes=6 * 10**9, accelerators=2, workloads=3),
    ),
)
NODES = {
    "n1": ("pa", node("n1", cpus=4, memory=8, devices=2, idle_mw=100_000, peak_mw=700_000)),
    "n2": ("pa", node("n2", cpus=2, memory=8, idle_mw=50_000, peak_mw=400_000)),
    "n3": ("pa", node("n3", cpus=4, memory=8, devices=4, idle_mw=100_000, peak_mw=700_000)),
    "m1": ("pb", node("m1", cpus=8, memory=16)),
    "m2": ("pb", node("m2", cpus=4, memory=8, devices=1)),
    "k1": ("pc", node("k1", cpus=2, memory=4)),
}

wheres = st.builds(
    Where,
    countries=st.sampled_from([(), (), ("FR",), ("SE",), ("FR", "SE")]),
    zones=st.sampled_from([(), (), ("a",), ("b", "c")]),
)
arrays = st.one_of(
    st.none(),
    st.none(),
    st.builds(JobArray, size=st.integers(1, 6), at_most=st.integers(0, 2)),
)
alternatives = st.sampled_from(
    [(), (), (Resources(cpu_milli=1000, memory_bytes=10**9, accelerators=1),)]
)
jobs = st.builds(
    job,
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0, 0, 0, 1, 2]),
    nodes=st.sampled_from([1, 1, 1, 2, 3]),
    kind=st.sampled_from([WorkloadKind.JOB, WorkloadKind.JOB, WorkloadKind.LEASE]),
    priority=st.sampled_from([10, 50, 50, 90]),
    where=wheres,
    when=st.builds(When, deadline_s=st.sampled_from([0, 0, 30])),
    retry=st.builds(Retry, attempts_max=st.integers(1, 3), backoff_s=st.sampled_from([0, 2])),
    time_limit_s=st.sampled_from([0, 20]),
    array=arrays,
    alternatives=alternatives,
    is_held=st.sampled_from([False, False, False, True]),
).map(
    lambda spec: (
        spec if spec.kind is WorkloadKind.JOB else replace(spec, array=None, alternatives=())
    )
)
endpoints = st.builds(
    endpoint,
    st.integers(1, 3),
    st.integers(1, 2),
    where=wheres,
    time_limit_s=st.sampled_from([0, 20, 60]),
)


class Factory(RuleBasedStateMachine):
    """One small factory, its world and what was ever placed."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.submitted = 0
        self.placed: set[str] = set()
        self.plans: dict[int, tuple[int, SchedulerPolicy, str]] = {}

    @initialize()
    def build(self) -> None:
        self.world.declare(*FACTORY)
        for pool, capacity in NODES.values():
            self.world.join(capacity, pool=pool)

    @rule(
        specs=st.lists(st.one_of(jobs, jobs, endpoints), min_size=1, max_size=3),
        project=st.sampled_from(["web", "web", "small"]),
        before=st.sampled_from([0, 0, 1, 2]),
        when=st.sampled_from(list(AfterWhen)),
    )
    def submit_and_cycle(self, specs, project, before, when) -> None:
        for spec in specs:
            self.submitted += 1
            other = self.submitted - before
            is_waiting = 0 < other < self.submitted and spec.kind is WorkloadKind.JOB
            after = (After(workload=f"w{other:03}", when=when),) if is_waiting else ()
            self.world.submit(f"w{self.submitted:03}", replace(spec, after=after), project)
        self.cycle()

    @precondition(lambda self: self.submitted)
    @rule(
        data=st.data(),
        is_held=st.sampled_from([None, True, False, False]),
        priority=st.sampled_from([None, 10, 90]),
        units=st.sampled_from([(), (0,), (1, 3)]),
    )
    def steer(self, data, is_held, priority, units) -> None:
        workload = WorkloadId(f"w{data.draw(st.integers(1, self.submitted)):03}")
        if units:
            self.world.add(WorkloadStopRequested(workload=workload, by="ada", units=units))
        else:
            self.world.add(
                WorkloadAdjusted(workload=workload, by="ada", is_held=is_held, priority=priority)
            )

    @precondition(lambda self: self.submitted)
    @rule(data=st.data(), limit_s=st.sampled_from([20, 60, 300]))
    def extend(self, data, limit_s) -> None:
        workload = WorkloadId(f"w{data.draw(st.integers(1, self.submitted)):03}")
        self.world.add(
            LeaseExtended(workload=workload, by="ada", time_limit_s=limit_s, added_neur=1)
        )

    @rule()
    def cycle(self) -> None:
        plan = self.world.decide()
        for place in plan.places:
            self._check_place(place)
        self.plans[plan.input_sequence] = (plan.now_ns, self.world.policy, plan_digest(plan))
        assert self.world.cycle() == plan
        self._check_power(plan)
        self._check_quota()

    @rule(seconds=st.sampled_from([1, 5, 25, 70]))
    def wait(self, seconds: int) -> None:
        self.world.now_ns += seconds * SECOND

    @precondition(lambda self: self.world.state.steps)
    @rule(data=st.data(), exit_code=st.sampled_from([None, 0, 0, 1]), count=st.integers(1, 4))
    def run_or_exit(self, data, exit_code, count) -> None:
        """Several tasks start to run or end by themselves, and the cycle after them comes."""
        for _ in range(min(count, len(self.world.state.steps))):
            step = data.draw(st.sampled_from([step for step, _ in live_steps(self.world.state)]))
            if exit_code is None:
                self.world.run(step, is_ready=True)
            else:
                self.world.exit(step, exit_code)
        self.cycle()

    @precondition(lambda self: self.world.state.steps)
    @rule(data=st.data(), phase=st.sampled_from(list(TaskPhase)), is_doubled=st.booleans())
    def see(self, data, phase, is_doubled) -> None:
        step = data.draw(st.sampled_from([step for step, _ in live_steps(self.world.state)]))
        for _ in range(1 + is_doubled):
            self.world.see(step, phase, 1 if phase is TaskPhase.EXITED else None)

    @precondition(lambda self: self.placed)
    @rule(data=st.data(), phase=st.sampled_from(list(TaskPhase)))
    def see_late(self, data, phase) -> None:
        """A reading of any attempt there ever was, ended or not; of ended ones it changes nothing."""
        attempt = data.draw(st.sampled_from(sorted(self.placed)))
        step = f"{attempt}.t0"
        is_live = step in self.world.state.steps
        before = None if is_live else self.world.state.digest()
        sequence = self.world.state.sequence
        self.world.see(step, phase, 1)
        if before is not None:
            after = self.world.state
            after.sequence = sequence
            assert after.digest() == before
            after.sequence = len(self.world.log)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data(), replicas=st.sampled_from([None, None, 0, 1, 4]))
    def stop_or_scale(self, data, replicas) -> None:
        workload = WorkloadId(f"w{data.draw(st.integers(1, self.submitted)):03}")
        if replicas is None:
            self.world.add(WorkloadStopRequested(workload=workload, by="ada"))
        else:
            self.world.add(WorkloadScaled(workload=workload, replicas=replicas, by="ada"))

    @rule(
        zone=st.sampled_from(ZONES),
        state=st.sampled_from([*ZoneState, *[ZoneState.OPEN] * 6]),
        name=st.sampled_from(sorted(NODES)),
        what=st.sampled_from(["zone", "zone", "join", "join", "find", "leave", "lose", "budget"]),
    )
    def disturb(self, zone, state, name, what) -> None:
        pool, capacity = NODES[name]
        if what == "zone":
            self.world.declare(Zone(name=zone, site=SITES[zone], state=state))
        elif what == "join":
            self.world.join(capacity, pool=pool)
        elif what == "leave":
            self.world.add(NodeLeft(node=NodeId(name)))
        elif what == "budget":
            is_spent = not self.world.policy.projects_exhausted
            self.world.policy = SchedulerPolicy(projects_exhausted=("small",) if is_spent else ())
        else:
            is_found = what == "find"
            self.world.add(NodeReachabilityChanged(node=NodeId(name), is_reachable=is_found))

    def _check_place(self, place: Place) -> None:
        state = self.world.state
        row = state.workloads[place.workload]
        spec = row.submission.spec
        assert place.attempt not in self.placed
        self.placed.add(place.attempt)
        assert [task.rank for task in place.tasks] == list(range(row.demand.tasks))
        assert len({task.node for task in place.tasks}) == len(place.tasks)
        zones = {state.zone_of_node(task.node) for task in place.tasks}
        [zone] = zones
        assert state.declared.zones[zone].state is ZoneState.OPEN
        assert not spec.where.zones or zone in spec.where.zones
        site = state.declared.sites[SITES[zone]]
        if spec.where.countries:
            assert site.country in spec.where.countries
            assert site.country_basis is not CountryBasis.GUESSED
        for task in place.tasks:
            found = state.nodes.row(task.node)
            assert found is not None
            assert found.is_present
            assert found.is_reachable
        assert not row.stop_requested_by
        assert not row.is_held
        for after in spec.after:
            other = state.workloads[WorkloadId(after.workload)]
            assert other.is_final
            assert after.when is AfterWhen.ANY or other.state is WorkloadState.SUCCEEDED
        unit = row.units[place.unit]
        assert unit.final is None
        assert not unit.is_stopping

    def _check_power(self, plan: Plan) -> None:
        state = self.world.state
        nodes = {task.node for place in plan.places for task in place.tasks}
        if any(state.zone_of_node(name) == "a" for name in nodes):
            assert site_draw_w(state.declared, state.nodes.columns, "lyon") <= 1500

    def _check_quota(self) -> None:
        held, quota = self.world.state.held_by_project.get("small"), FACTORY[-1]
        assert isinstance(quota, Project)
        if held is not None:
            assert held.cpu_milli <= quota.quota.cpu_milli
            assert held.memory_bytes <= quota.quota.memory_bytes
            assert held.accelerators <= quota.quota.accelerators
            assert held.workloads <= quota.quota.workloads

    @invariant()
    def free_and_held_are_the_capacity(self) -> None:
        state = self.world.state
        for view, row in zip(node_views(state), state.nodes.rows, strict=True):
            tasks = row.tasks.values()
            assert view.cpu_milli_held == sum(task.cpu_milli for task in tasks) <= view.cpu_milli
            assert view.memory_bytes_held == sum(task.memory_bytes for task in tasks)
            assert view.memory_bytes_held <= view.memory_bytes
            devices = Counter(device for task in tasks for device in task.devices)
            assert view.accelerators_held == len(devices) == devices.total()
            mask = sum(1 << device for device in devices)
            assert row.devices_free ^ mask == (1 << view.accelerators) - 1

    @invariant()
    def projects_hold_what_their_live_tasks_hold(self) -> None:
        state = self.world.state
        for project, held in state.held_by_project.items():
            rows = [row for row in state.workloads.values() if row.submission.project == project]
            tasks = [
                task
                for row in rows
                for attempt in state.live_attempts(row)
                for task in attempt.tasks
                if not task.is_ended
            ]
            assert held.cpu_milli == sum(task.cpu_milli for task in tasks)
            assert held.memory_bytes == sum(task.memory_bytes for task in tasks)
            assert held.accelerators == sum(len(task.devices) for task in tasks)
            assert held.workloads == sum(bool(state.live_attempts(row)) for row in rows)

    @invariant()
    def what_waits_is_in_exactly_one_place(self) -> None:
        state = self.world.state
        units = [
            (row, unit)
            for row in state.workloads.values()
            if not row.is_final
            for unit in row.units
            if unit.is_waiting
        ]
        in_line = sorted(ticket for line in state.waiting.lines.values() for ticket in line)
        assert in_line == sorted(
            ticket_of(row, unit)
            for row, unit in units
            if not (unit.not_before_ns or unit.is_withheld)
        )
        assert len(state.backing_off.entries) == sum(bool(unit.not_before_ns) for _, unit in units)
        for row in state.workloads.values():
            mine = [unit for other, unit in units if other is row]
            assert row.withheld == [unit.unit for unit in mine if unit.is_withheld]
            lined = [unit for unit in mine if not (unit.not_before_ns or unit.is_withheld)]
            assert row.in_line == len(lined)
            assert row.is_eligible or not lined or row.is_final

    @invariant()
    def arrays_keep_to_their_limits_and_count_their_elements(self) -> None:
        state = self.world.state
        for row in state.workloads.values():
            if row.at_most:
                assert row.attempts_live <= row.at_most
                assert (
                    not row.withheld
                    or not row.is_eligible
                    or (row.attempts_live + row.in_line >= row.at_most)
                )
            if not row.is_array:
                continue
            assert row.open_units == sum(unit.final is None for unit in row.units)
            assert row.is_final or row.open_units or row.submission.id in state.unsettled
            for unit in row.units:
                if unit.final is not None:
                    attempt = state.latest_attempt(unit)
                    assert attempt is None or not attempt.is_live
                    assert not unit.is_waiting
            before = dict(row.due_units)
            settle_later(state, row)
            assert row.due_units == before

    @invariant()
    def nobody_waits_for_what_has_ended(self) -> None:
        state = self.world.state
        for other, dependents in state.dependents.items():
            assert not state.workloads[other].is_final
            for dependent in dependents:
                assert other in state.workloads[dependent].after_left
        for row in state.workloads.values():
            for other in row.after_left:
                assert row.submission.id in state.dependents[other]

    @invariant()
    def states_agree_with_attempts(self) -> None:
        state = self.world.state
        for workload, row in state.workloads.items():
            live = state.live_attempts(row)
            assert row.attempts_live == len(live)
            assert not (row.is_final and live)
            view = workload_view(state, workload)
            if row.is_final:
                assert view.state == row.state
            elif not live:
                assert row.state is WorkloadState.ADMITTED
            explain(state, workload, self.world.now_ns, self.world.policy)

    def teardown(self) -> None:
        """Deciding comes to rest, and a replay of the log decides the same again."""
        for _ in range(10):
            if self.world.cycle().is_empty:
                break
        else:
            raise AssertionError("cycles without events between them go on for ever")
        replayed = empty_state()
        for event in self.world.log:
            fold(replayed, event)
            if event.sequence in self.plans:
                now_ns, policy, digest = self.plans[event.sequence]
                assert plan_digest(decide(replayed, now_ns, policy)) == digest
        assert replayed.digest() == self.world.state.digest()
        placed = [e.payload.attempt for e in self.world.log if isinstance(e.payload, AttemptPlaced)]
        assert len(placed) == len(set(placed))


TestFactory = Factory.TestCase
TestFactory.settings = settings(max_examples=60, stateful_step_count=40)
