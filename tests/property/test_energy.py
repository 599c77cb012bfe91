"""Conservation: every millijoule of a reading is carried by someone, in one interval and in many."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from moulin.domain.factory import EnergyClass
from moulin.domain.ids import AttemptId, NodeId, OrganisationId, ProjectId, StepId, WorkloadId
from moulin.domain.usage import NodeReading, RequestUsage, TaskReading
from moulin.energy.allocation import allocate, node_energy
from moulin.energy.power import PowerModel
from moulin.energy.requests import share_requests

NS = st.integers(0, 100 * 10**9)


@st.composite
def readings(draw):
    idle_mj = draw(st.integers(0, 10**12))
    start_ns = draw(NS)
    return NodeReading(
        node=NodeId("n"),
        zone="z",
        start_ns=start_ns,
        end_ns=start_ns + draw(NS),
        cpu_ns=draw(NS),
        cpu_milli=draw(st.integers(0, 200_000)),
        energy_mj=idle_mj + draw(st.integers(0, 10**12)),
        idle_mj=idle_mj,
        method="",
        quality=EnergyClass.CONSTANT,
        uncertainty_ppm=0,
    )


@st.composite
def task_readings(draw):
    start_ns = draw(NS)
    return TaskReading(
        step=StepId(draw(st.sampled_from("abcdef"))),
        attempt=AttemptId("a"),
        workload=WorkloadId("w"),
        organisation=OrganisationId("o"),
        project=ProjectId("p"),
        start_ns=start_ns,
        end_ns=start_ns + draw(NS),
        cpu_ns=draw(NS),
        cpu_milli=draw(st.integers(0, 10_000)),
        memory_bytes=0,
    )


@given(readings(), st.lists(task_readings(), max_size=8), st.integers(1_000_000, 3_000_000))
def test_a_split_is_exact_and_never_below_zero(reading, tasks, pue_ppm):
    split = allocate(reading, tasks, pue_ppm)
    assert sum(split.task_mj.values()) + split.idle_mj + split.unattributed_mj == reading.energy_mj
    assert min([*split.task_mj.values(), split.idle_mj, split.unattributed_mj]) >= 0
    carried = sum(split.task_overhead_mj.values())
    assert 0 <= carried <= split.overhead_mj
    assert abs(Fraction(reading.energy_mj * (pue_ppm - 10**6), 10**6) - split.overhead_mj) <= 1
    if not split.idle_mj + split.unattributed_mj:
        assert carried == split.overhead_mj
    assert all(split.task_standing_mj[step] <= split.task_mj[step] for step in split.task_mj)
    assert split == allocate(reading, tasks[::-1], pue_ppm)


@given(
    st.lists(
        st.tuples(st.integers(1, 20 * 10**9), st.integers(0, 10**11)), min_size=1, max_size=30
    ),
    st.integers(0, 10**6),
    st.integers(0, 10**7),
)
def test_many_intervals_do_not_drift(parts, idle_mw, swing_mw):
    power = PowerModel(
        idle_mw=idle_mw,
        peak_mw=idle_mw + swing_mw,
        quality=EnergyClass.CONSTANT,
        uncertainty_ppm=0,
        source="",
    )
    start_ns = 1_700_000_000_000_000_007
    first_ns, total_mj, exact_load, carried_mj = start_ns, 0, Fraction(0), 0
    for length_ns, cpu_ns in parts:
        end_ns = start_ns + length_ns
        reading = node_energy(
            node=NodeId("n"),
            zone="z",
            start_ns=start_ns,
            end_ns=end_ns,
            cpu_ns_busy=cpu_ns,
            cpu_milli=4000,
            power=power,
        )
        task = TaskReading(
            step=StepId("s"),
            attempt=AttemptId("a"),
            workload=WorkloadId("w"),
            organisation=OrganisationId("o"),
            project=ProjectId("p"),
            start_ns=start_ns,
            end_ns=end_ns,
            cpu_ns=cpu_ns // 3,
            cpu_milli=1000,
            memory_bytes=0,
        )
        split = allocate(reading, [task], 1_000_000)
        total_mj += reading.energy_mj
        carried_mj += sum(split.task_mj.values()) + split.idle_mj + split.unattributed_mj
        exact_load += Fraction(swing_mw * min(cpu_ns, 4 * length_ns), 4 * 10**9)
        start_ns = end_ns
    assert carried_mj == total_mj
    exact = exact_load + Fraction(idle_mw * (start_ns - first_ns), 10**9)
    assert abs(total_mj - exact) <= 1 + Fraction(len(parts), 2)


@st.composite
def request_usages(draw):
    start_ns = draw(st.integers(0, 3000))
    return RequestUsage(
        request=f"r{draw(st.integers(0, 10**9))}",
        organisation=OrganisationId("o"),
        project=ProjectId("p"),
        key="k",
        model="m",
        replica=AttemptId("r"),
        zone="z",
        start_ns=start_ns,
        end_ns=start_ns + draw(st.integers(0, 3000)),
        tokens_input=draw(st.integers(0, 10**6)),
        tokens_output=draw(st.integers(0, 10**6)),
        outcome="completed",
    )


@given(
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.lists(request_usages(), max_size=8, unique_by=lambda r: r.request),
    st.none() | st.tuples(st.integers(0, 2000), st.integers(2000, 4000)),
)
def test_requests_and_unsold_add_up(load_mj, standing_mj, requests, window_ns):
    total_mj = load_mj + standing_mj
    shares, unsold_mj = share_requests(
        total_mj, requests, standing_mj=standing_mj, window_ns=window_ns
    )
    assert sum(shares.values()) + unsold_mj == total_mj
    assert min([*shares.values(), unsold_mj]) >= 0
    assert set(shares) == {request.request for request in requests}
    assert (shares, unsold_mj) == share_requests(
        total_mj, requests[::-1], standing_mj=standing_mj, window_ns=window_ns
    )
