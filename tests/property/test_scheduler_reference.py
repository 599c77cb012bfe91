"""The decider against a brute force that tries every set of nodes, on factories small enough for it."""

from fractions import Fraction
from itertools import combinations
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from moulin.domain.factory import Pool, Project, Quota, Site, Zone, ZoneState
from moulin.domain.ids import NodeId, WorkloadId
from moulin.domain.plan import Place
from moulin.domain.workload import Where, WorkloadKind, WorkloadSpec
from moulin.scheduler import SchedulerPolicy, explain
from moulin.scheduler.nodes import NodeRow
from moulin.scheduler.rows import WorkloadRow
from tests.unit.scheduler.world import World, job, node, world

ORDER = ("w0", "w1", "w2", "w3", "w4", "w5")
LULEA = (
    Site(name="lulea", country="SE"),
    Zone(name="b", site="lulea"),
    Pool(name="pb", zone="b", engine="local", machine_class="cpu"),
)

machines = st.tuples(
    st.sampled_from(["pa", "pa", "pb"]), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2)
)
specs = st.builds(
    job,
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0, 0, 1, 2]),
    nodes=st.integers(1, 3),
    priority=st.sampled_from([50, 50, 60]),
    kind=st.sampled_from([WorkloadKind.JOB] * 4 + [WorkloadKind.LEASE]),
    where=st.sampled_from([Where(), Where(), Where(countries=("SE",)), Where(zones=("a",))]),
)
jobs_only = specs.map(
    lambda spec: job(1, nodes=spec.nodes) if spec.kind is WorkloadKind.LEASE else spec
)

Free = dict[str, tuple[int, int, int, int]]


def factory(nodes: list[tuple[str, int, int, int]]) -> World:
    here = world(more=LULEA)
    for index, (pool, cpus, memory, devices) in enumerate(nodes):
        machine = node(
            f"n{index}", cpus, memory, devices, idle_mw=50_000, peak_mw=50_000 + cpus * 90_000
        )
        here.join(machine, pool=pool)
    return here


def free_of(here: World) -> Free:
    """CPU, memory and devices free and the number of tasks, by node."""
    return {
        name: (
            row.capacity.cpu_milli - sum(task.cpu_milli for task in row.tasks.values()),
            row.capacity.memory_bytes - sum(task.memory_bytes for task in row.tasks.values()),
            row.devices_free.bit_count(),
            len(row.tasks),
        )
        for name, row in zip(here.state.nodes.names, here.state.nodes.rows, strict=True)
    }


def fitting_sets(here: World, free: Free, spec: WorkloadSpec) -> list[tuple[str, ...]]:
    """Every set of nodes that could take the gang: the whole truth, slowly."""
    asked = spec.resources
    fitting = []
    for name, (cpu, memory, devices, tasks) in free.items():
        zone = here.state.zone_of_node(NodeId(name))
        country = "SE" if zone == "b" else "FR"
        fits = cpu >= asked.cpu_milli and memory >= asked.memory_bytes
        fits = fits and devices >= asked.accelerators
        fits = fits and (spec.kind is not WorkloadKind.LEASE or tasks == 0)
        fits = fits and (not spec.where.zones or zone in spec.where.zones)
        fits = fits and (not spec.where.countries or country in spec.where.countries)
        if fits and here.state.declared.zones[zone].state is ZoneState.OPEN:
            fitting.append((zone, name))
    return [
        tuple(name for _, name in chosen)
        for chosen in combinations(fitting, spec.nodes)
        if len({zone for zone, _ in chosen}) == 1
    ]


def take(free: Free, place: Place, row: WorkloadRow) -> None:
    shape = row.demand.shape
    for task in place.tasks:
        cpu, memory, devices, tasks = free[task.node]
        if shape.is_whole_node:
            free[task.node] = (0, 0, 0, tasks + 1)
        else:
            left = (cpu - shape.cpu_milli, memory - shape.memory_bytes, devices - len(task.devices))
            assert min(left) >= 0
            free[task.node] = (*left, tasks + 1)


def in_order(here: World) -> list[WorkloadRow]:
    rows = [row for row in here.state.workloads.values() if row.units[0].is_waiting]
    return sorted(rows, key=lambda row: (-row.demand.priority, row.submission.id))


@given(st.lists(machines, min_size=1, max_size=4), st.lists(specs, min_size=1, max_size=6))
@settings(max_examples=300)
def test_without_reservations_a_gang_is_placed_exactly_when_some_set_of_nodes_takes_it(
    nodes, wanted
):
    here = factory(nodes)
    here.policy = SchedulerPolicy(reservations_max=0)
    for name, spec in zip(ORDER, wanted, strict=False):
        here.submit(name, spec)
    free = free_of(here)
    places = {place.workload: place for place in here.decide().places}
    for row in in_order(here):
        sets = fitting_sets(here, free, row.submission.spec)
        place = places.get(row.submission.id)
        assert (place is not None) == bool(sets)
        if place is not None:
            assert tuple(sorted(task.node for task in place.tasks)) in {
                tuple(sorted(s)) for s in sets
            }
            take(free, place, row)


@given(
    st.lists(machines, min_size=1, max_size=4),
    st.lists(jobs_only, min_size=1, max_size=5),
    st.integers(100, 900),
    st.sampled_from([-1, 2000, 4000]),
)
@settings(max_examples=300)
def test_the_head_is_placed_exactly_when_brute_force_finds_nodes_power_and_quota(
    nodes, wanted, envelope_w, quota_milli
):
    here = factory(nodes)
    here.declare(
        Site(name="lyon", country="FR", power_envelope_w=envelope_w, pue_ppm=1_100_000),
        Project(name="web", organisation="acme", quota=Quota(cpu_milli=quota_milli)),
    )
    for name, spec in zip(ORDER, wanted[:-1], strict=False):
        here.submit(name, spec)
    here.cycle()
    for row in in_order(here):
        here.state.waiting.remove(row.demand, next(iter(here.state.waiting.lines[row.demand])))
        row.units[0].is_waiting = False
    here.submit("head", wanted[-1])
    sets = fitting_sets(here, free_of(here), wanted[-1])
    affordable = [chosen for chosen in sets if within_power(here, chosen, wanted[-1], envelope_w)]
    held = here.state.held_by_project["web"].cpu_milli if here.state.held_by_project else 0
    asked = wanted[-1].resources.cpu_milli * wanted[-1].nodes
    is_within_quota = quota_milli < 0 or held + asked <= quota_milli
    reasons = [
        reason.code.value
        for reason in explain(here.state, in_order(here)[0].submission.id, 0, here.policy)
    ]
    places = here.decide().places
    assert bool(places) == bool(affordable and is_within_quota)
    assert bool(places) == (not reasons)
    assert ("PowerEnvelope" in reasons) == bool(sets and not affordable)
    assert ("InsufficientQuota" in reasons) == (not is_within_quota)


def within_power(here: World, chosen: tuple[str, ...], spec: WorkloadSpec, envelope_w: int) -> bool:
    """The envelope's rule from its definition; what adds nothing is carried whatever is drawn."""
    if here.state.zone_of_node(NodeId(chosen[0])) == "b":
        return True
    before_mw = sum(node_mw(row, None) for row in here.state.nodes.rows if row.pool == "pa")
    after_mw = sum(
        node_mw(row, spec if row.capacity.node in chosen else None)
        for row in here.state.nodes.rows
        if row.pool == "pa"
    )
    return after_mw == before_mw or after_mw * 1_100_000 <= envelope_w * 1000 * 1_000_000


def node_mw(row: NodeRow, added: WorkloadSpec | None) -> int:
    """One node's committed draw with one more task, in milliwatts."""
    capacity, tasks = row.capacity, list(row.tasks.values())
    cpu_milli = sum(task.cpu_milli for task in tasks)
    devices = sum(len(task.devices) for task in tasks)
    if added is not None:
        cpu_milli += added.resources.cpu_milli
        devices += added.resources.accelerators
    span_mw = capacity.peak_mw - capacity.idle_mw
    shares = [Fraction(cpu_milli, capacity.cpu_milli)]
    if capacity.accelerators:
        shares.append(Fraction(devices, capacity.accelerators))
    return capacity.idle_mw + ceil(span_mw * max(shares))


@given(
    st.lists(machines, min_size=1, max_size=4),
    st.lists(jobs_only, min_size=1, max_size=5),
    machines,
)
@settings(max_examples=200)
def test_one_node_more_never_takes_the_head_its_place(nodes, wanted, extra):
    placed = []
    for here in (factory(nodes), factory([*nodes, extra])):
        for name, spec in zip(ORDER, wanted, strict=False):
            here.submit(name, spec)
        head = in_order(here)[0].submission.id
        placed.append(head in {place.workload for place in here.decide().places})
    assert placed[0] <= placed[1]


@given(
    st.lists(machines, min_size=1, max_size=5),
    st.lists(jobs_only, min_size=2, max_size=6),
    st.randoms(),
)
@settings(max_examples=100)
def test_the_order_in_which_nodes_join_and_equal_times_arrive_changes_no_plan(
    nodes, wanted, random
):
    plans = []
    for is_shuffled in (False, True):
        here = world(more=LULEA)
        joins = list(enumerate(nodes))
        submissions = list(zip(ORDER, wanted, strict=False))
        if is_shuffled:
            random.shuffle(joins)
            random.shuffle(submissions)
        for index, (pool, cpus, memory, devices) in joins:
            here.join(node(f"n{index}", cpus, memory, devices), pool=pool)
        for name, spec in submissions:
            here.submit(name, spec)
        plans.append(here.decide())
    assert plans[0] == plans[1]


@given(st.lists(jobs_only, min_size=3, max_size=6))
@settings(max_examples=100)
def test_whatever_the_load_a_waiting_gang_starts_when_the_work_before_it_has_ended(wanted):
    """No starvation: small work keeps coming, yet the gang waits at most for what ran before it."""
    here = factory([("pa", 4, 4, 2)] * 3)
    for name, spec in zip(ORDER, wanted, strict=False):
        here.submit(name, job(spec.resources.cpu_milli // 1000))
    here.cycle()
    steps = list(here.state.steps)
    here.submit("gang", job(4, nodes=3))
    for index, step in enumerate(steps):
        here.submit(f"x{index}", job(1))
        here.cycle()
        here.exit(step)
    here.cycle()
    assert not here.state.workloads[WorkloadId("gang")].units[0].is_waiting
