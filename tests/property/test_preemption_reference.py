"""Who gives way, against a brute force that tries every set of attempts, on factories small enough for it."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from moulin.domain.factory import Pool, PreemptionScope, Project
from moulin.domain.ids import AttemptId, WorkloadId
from moulin.domain.plan import Plan, StopCause
from moulin.domain.workload import WorkloadSpec
from moulin.scheduler import SchedulerPolicy
from moulin.scheduler.rows import AttemptRow
from tests.unit.scheduler.world import SECOND, World, job, node, world

START_NS = 10**15
POOLS = (
    Pool(
        name="pa",
        zone="a",
        engine="local",
        machine_class="cpu",
        preemption=PreemptionScope.ALL,
    ),
    Pool(
        name="pb",
        zone="a",
        engine="local",
        machine_class="cpu",
        preemption=PreemptionScope.PROJECT,
    ),
    Pool(name="pc", zone="a", engine="local", machine_class="cpu"),
    Project(name="web", organisation="acme"),
    Project(name="lab", organisation="acme"),
    Project(name="firm", organisation="acme", is_preemptible=False),
)

machines = st.tuples(
    st.sampled_from(["pa", "pa", "pa", "pb", "pc"]), st.integers(2, 6), st.sampled_from([0, 0, 3])
)
works = st.tuples(
    st.sampled_from([1, 1, 2, 3]),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([1, 1, 1, 2]),
    st.sampled_from([10, 20, 30, 40, 50, 60]),
    st.sampled_from(["web", "web", "web", "lab", "firm"]),
    st.integers(1, 90),
)
Work = tuple[int, int, int, int, str, int]
Loss = tuple[int, int, int]
heads = st.tuples(st.integers(2, 4), st.sampled_from([0, 0, 0, 2]), st.sampled_from([1, 1, 2, 3]))


def loaded(nodes: list[tuple[str, int, int]], works: list[Work]) -> World:
    """A factory in which what fits of the work runs, each for as many seconds as it says."""
    here = world(more=POOLS)
    here.now_ns = START_NS
    here.policy = SchedulerPolicy(reservations_max=0)
    for index, (pool, cpus, devices) in enumerate(nodes):
        here.join(node(f"n{index}", cpus, 16, devices), pool=pool)
    for index, (cpus, devices, size, priority, project, ran_s) in enumerate(works):
        spec = job(cpus, 1, devices, nodes=size, priority=priority, time_limit_s=10**6)
        here.submit(f"w{index}", spec, project)
        here.cycle()
        for step, task in list(here.state.steps.items()):
            if task.phase is None:
                here.run(step, started_at_ns=START_NS)
                attempt = here.state.attempts[task.attempt]
                attempt.started_at_ns = START_NS - ran_s * SECOND
    for row in list(here.state.workloads.values()):
        if row.units[0].is_waiting:  # only the head waits
            here.state.waiting.remove(row.demand, next(iter(here.state.waiting.lines[row.demand])))
            row.units[0].is_waiting = False
    here.policy = SchedulerPolicy()
    return here


def may_give_way(here: World, attempt: AttemptRow, head: str) -> bool:
    row = here.state.workloads[WorkloadId(attempt.workload)]
    if row.demand.priority >= 60 or row.submission.project == "firm":
        return False
    pools = {here.state.nodes.row(task.node).pool for task in attempt.tasks}  # type: ignore[union-attr]
    return "pc" not in pools and ("pb" not in pools or row.submission.project == head)


def fits(here: World, gone: tuple[AttemptId, ...], spec: WorkloadSpec) -> bool:
    """Whether enough nodes have room for a task each when some attempts have ended: by counting."""
    asked, count = spec.resources, 0
    for row in here.state.nodes.rows:
        left = [task for task in row.tasks.values() if task.attempt not in gone]
        cpu = row.capacity.cpu_milli - sum(task.cpu_milli for task in left)
        memory = row.capacity.memory_bytes - sum(task.memory_bytes for task in left)
        devices = row.capacity.accelerators - sum(len(task.devices) for task in left)
        count += (
            cpu >= asked.cpu_milli
            and memory >= asked.memory_bytes
            and devices >= asked.accelerators
        )
    return count >= spec.nodes


def loss(here: World, gone: tuple[AttemptId, ...]) -> Loss:
    found = [here.state.attempts[name] for name in gone]
    ran = [(here.now_ns - each.started_at_ns, each) for each in found]
    return (
        sum(ns * sum(len(task.devices) for task in each.tasks) for ns, each in ran),
        sum(ns * sum(task.cpu_milli for task in each.tasks) for ns, each in ran),
        len(found),
    )


def gives_way(plan: Plan) -> tuple[AttemptId, ...]:
    return tuple(sorted(s.attempt for s in plan.stops if s.cause is StopCause.PREEMPTED))


@given(
    st.lists(machines, min_size=1, max_size=3),
    st.lists(works, min_size=3, max_size=8),
    heads,
    st.sampled_from(["web", "lab"]),
)
@settings(max_examples=120)
def test_who_gives_way_is_enough_no_more_than_needed_and_the_least_where_none_is_a_gang(
    nodes, works, head, project
):
    here = loaded(nodes, works)
    cpus, devices, size = head
    spec = job(cpus, 1, devices, nodes=size, priority=60)
    here.submit("head", spec, project)
    able = sorted(
        name
        for name, attempt in here.state.attempts.items()
        if attempt.is_live and may_give_way(here, attempt, project)
    )
    sets = [
        some
        for count in range(len(able) + 1)
        for some in combinations(able, count)
        if fits(here, some, spec)
    ]
    plan = here.decide()
    found = gives_way(plan)
    assert bool(plan.places) == (() in sets)
    if () in sets or not sets:
        assert found == ()
        return
    assert found in sets
    assert not any(tuple(x for x in found if x != each) in sets for each in found)
    if all(len(here.state.attempts[name].tasks) == 1 for name in able):
        assert loss(here, found) == min(loss(here, some) for some in sets)


@given(st.lists(machines, min_size=1, max_size=3), st.lists(works, min_size=3, max_size=8), heads)
@settings(max_examples=40)
def test_whoever_made_others_give_way_gets_their_place_and_nobody_has_to_twice(nodes, works, head):
    """No ping-pong: one preemption, one start, and what gave way never takes the place back."""
    here = loaded(nodes, works)
    cpus, devices, size = head
    here.submit("head", job(cpus, 1, devices, nodes=size, priority=60), "web")
    gone = gives_way(here.cycle())
    for attempt in gone:
        here.cycle()
        for task in list(here.state.attempts[attempt].tasks):
            here.exit(task.step, 143)
    here.cycle()
    row = here.state.workloads[WorkloadId("head")]
    assert not gone or row.attempts_live
    for _ in range(3):
        assert not gives_way(here.cycle())
    for name in gone:
        unit = here.state.workloads[WorkloadId(name.partition(".")[0])].units[0]
        assert (unit.failures, unit.losses, unit.preemptions) == (0, 0, 1)
