"""Energy of a node and who carries it: worked examples, to the millijoule."""

import itertools
from fractions import Fraction

import pytest

from moulin.domain.errors import InvariantViolated
from moulin.domain.factory import EnergyClass, Site
from moulin.domain.ids import AttemptId, NodeId, OrganisationId, ProjectId, StepId, WorkloadId
from moulin.domain.usage import TaskReading
from moulin.energy.allocation import allocate, carbon, node_energy
from moulin.energy.power import PowerModel

S = 1_000_000_000
POWER = PowerModel(
    idle_mw=10_000,
    peak_mw=50_000,
    quality=EnergyClass.SPECIFICATION_MODEL,
    uncertainty_ppm=350_000,
    source="a table",
)


def read(cpu_ns, *, start_ns=0, end_ns=10 * S, cpu_milli=4000, power=POWER):
    return node_energy(
        node=NodeId("n1"),
        zone="z",
        start_ns=start_ns,
        end_ns=end_ns,
        cpu_ns_busy=cpu_ns,
        cpu_milli=cpu_milli,
        power=power,
    )


def task(name, cpu_ns, *, start_ns=0, end_ns=10 * S, cpu_milli=1000, is_whole_node=False):
    return TaskReading(
        step=StepId(name),
        attempt=AttemptId(f"{name}.a"),
        workload=WorkloadId("job_1"),
        organisation=OrganisationId("o"),
        project=ProjectId("p"),
        start_ns=start_ns,
        end_ns=end_ns,
        cpu_ns=cpu_ns,
        cpu_milli=cpu_milli,
        memory_bytes=0,
        is_whole_node=is_whole_node,
    )


@pytest.mark.parametrize(
    ("busy_s", "energy_mj"),
    [(0, 100_000), (20, 300_000), (40, 500_000), (41, 500_000)],
    ids=["idle", "half", "full", "counted above capacity"],
)
def test_power_is_linear_between_idle_and_peak(busy_s, energy_mj):
    reading = read(busy_s * S)
    assert (reading.energy_mj, reading.idle_mj) == (energy_mj, 100_000)
    assert reading.method.startswith("linear model, 10000 mW idle to 50000 mW busy")
    assert reading.method.endswith("a table")
    assert (reading.quality.value, reading.uncertainty_ppm) == ("D", 350_000)


def test_idle_of_adjacent_intervals_adds_up_to_the_long_one():
    power = PowerModel(
        idle_mw=7_777,
        peak_mw=9_999,
        quality=EnergyClass.CONSTANT,
        uncertainty_ppm=500_000,
        source="",
    )
    edges = [0, 3, 1_000_000_007, 1_700_000_011, 9_999_999_999]
    parts = [
        read(0, start_ns=a, end_ns=b, power=power).idle_mj for a, b in itertools.pairwise(edges)
    ]
    assert sum(parts) == read(0, end_ns=edges[-1], power=power).idle_mj


def test_a_node_without_cpus_only_idles():
    assert read(S, cpu_milli=0).energy_mj == 100_000


@pytest.mark.parametrize(
    "wrong", [{"end_ns": -1}, {"cpu_ns": -1}], ids=["backwards", "negative time"]
)
def test_impossible_readings_are_refused(wrong):
    with pytest.raises(InvariantViolated):
        read(**{"cpu_ns": 0, **wrong})


def test_idle_goes_to_holders_and_load_to_who_used_the_cpu():
    # 100 J idle over 4 CPUs x 10 s; 200 J of load over 20 CPU-s, of which 5 are nobody's.
    split = allocate(
        read(20 * S), [task("a", 10 * S, cpu_milli=2000), task("b", 5 * S, end_ns=5 * S)], 1_000_000
    )
    assert split.task_standing_mj == {"a": 50_000, "b": 12_500}
    assert split.task_mj == {"a": 50_000 + 100_000, "b": 12_500 + 50_000}
    assert (split.idle_mj, split.unattributed_mj, split.overhead_mj) == (37_500, 50_000, 0)


def test_tasks_that_claim_more_than_the_node_counted_are_scaled_down():
    split = allocate(read(8 * S), [task("a", 6 * S), task("b", 6 * S)], 1_000_000)
    assert split.task_mj == {"a": 25_000 + 40_000, "b": 25_000 + 40_000}
    assert split.unattributed_mj == 0


def test_a_task_that_holds_the_node_twice_over_leaves_no_idle_and_none_below_zero():
    split = allocate(read(0), [task("a", 0, cpu_milli=8000)], 1_000_000)
    assert (split.task_mj[StepId("a")], split.idle_mj) == (100_000, 0)


def test_two_readings_of_one_step_are_one_holder():
    split = allocate(
        read(4 * S), [task("a", S, end_ns=5 * S), task("a", 3 * S, start_ns=5 * S)], 1_000_000
    )
    assert split.task_mj == {"a": 25_000 + 40_000}


def test_load_without_any_counted_cpu_time_is_unattributed():
    reading = read(4 * S)
    blind = allocate(
        type(reading)(
            **{name: getattr(reading, name) for name in reading.__slots__} | {"cpu_ns": 0}
        ),
        [task("a", 0)],
        1_000_000,
    )
    assert blind.unattributed_mj == 40_000


def test_overhead_is_on_the_whole_reading_and_follows_the_shares():
    split = allocate(read(20 * S), [task("a", 20 * S, cpu_milli=4000)], 1_300_000)
    assert (split.overhead_mj, split.task_overhead_mj) == (90_000, {"a": 90_000})
    empty = allocate(read(0), [], 1_300_000)
    assert (empty.overhead_mj, empty.task_overhead_mj) == (30_000, {})


def test_effectiveness_below_one_is_refused():
    with pytest.raises(InvariantViolated):
        allocate(read(0), [], 999_999)


@pytest.mark.parametrize(
    ("energy_mj", "expected"),
    [
        (0, (0, 0)),
        (3_600_000_000, (56_000_000_000, 24_000_000_000)),
        (1, (16, 7)),
        (10**30, (round(Fraction(10**30 * 140, 9)), round(Fraction(10**30 * 20, 3)))),
    ],
    ids=["none", "one kWh", "one mJ", "past 64 bits"],
)
def test_carbon_by_both_factors(energy_mj, expected):
    site = Site(
        name="s",
        country="FR",
        carbon_location_ng_per_kwh=56_000_000_000,
        carbon_market_ng_per_kwh=24_000_000_000,
    )
    assert carbon(energy_mj, site) == expected


@pytest.mark.parametrize(
    ("start_s", "share_mj", "unattributed_mj"),
    [(0, 300_000, 0), (5, 50_000 + 50_000 + 75_000, 75_000)],
    ids=["all of the time", "half of it"],
)
def test_who_has_the_whole_node_carries_what_no_task_explains(start_s, share_mj, unattributed_mj):
    lease = task("l", 5 * S, start_ns=start_s * S, cpu_milli=4000, is_whole_node=True)
    found = allocate(read(20 * S), [lease], 1_000_000)
    assert found.task_mj == {StepId("l"): share_mj}
    assert found.unattributed_mj == unattributed_mj
    assert sum(found.task_mj.values()) + found.idle_mj + found.unattributed_mj == 300_000
