"""Usages of jobs: what was held, whose energy it is, and names that repeat for the same interval."""

import itertools

import pytest

from moulin.domain.errors import InvariantViolated
from moulin.domain.factory import CountryBasis, EnergyClass, Site
from moulin.domain.ids import AttemptId, NodeId, OrganisationId, ProjectId, StepId, WorkloadId
from moulin.domain.usage import NodeAllocation, NodeReading, TaskReading
from moulin.metering.usage import AttemptFacts, held_quantities, job_usages

MS = 1_000_000
SITE = Site(
    name="lyon", country="FR", country_basis=CountryBasis.ASSERTED, carbon_source="a yearly mean"
)
FACTS = {
    name: AttemptFacts(
        attempt=name,
        workload=WorkloadId("job_1"),
        organisation=OrganisationId("o"),
        project=ProjectId("p"),
        zone="lyon-a",
        site=SITE,
        subject="this-machine",
        policy_decision="sha256:aa",
    )
    for name in (AttemptId("a"), AttemptId("b"))
}


def carbon(energy_mj, site):
    return energy_mj * 3, energy_mj * 2


def task(step, attempt, *, start_ns=0, end_ns=1000 * MS, cpu_milli=500, memory_bytes=0, devices=0):
    return TaskReading(
        step=StepId(step),
        attempt=AttemptId(attempt),
        workload=WorkloadId("job_1"),
        organisation=OrganisationId("o"),
        project=ProjectId("p"),
        start_ns=start_ns,
        end_ns=end_ns,
        cpu_ns=0,
        cpu_milli=cpu_milli,
        memory_bytes=memory_bytes,
        accelerators=devices,
    )


def allocation(task_mj, overhead_mj, *, start_ns=0):
    return NodeAllocation(
        reading=NodeReading(
            node=NodeId("n1"),
            zone="lyon-a",
            start_ns=start_ns,
            end_ns=start_ns + 1000 * MS,
            cpu_ns=0,
            cpu_milli=4000,
            energy_mj=sum(task_mj.values()),
            idle_mj=0,
            method="a model",
            quality=EnergyClass.SPECIFICATION_MODEL,
            uncertainty_ppm=350_000,
        ),
        task_mj=task_mj,
        idle_mj=0,
        unattributed_mj=0,
        overhead_mj=sum(overhead_mj.values()),
        task_overhead_mj=overhead_mj,
    )


def test_one_usage_per_attempt_with_energy_overhead_and_carbon():
    split = allocation({"a0": 100, "a1": 50, "b0": 7}, {"a0": 10, "a1": 5, "b0": 1})
    first, second = job_usages(
        split, [task("b0", "b"), task("a0", "a"), task("a1", "a", end_ns=400 * MS)], FACTS, carbon
    )
    assert (first.id, second.id) == ("use_a.n1.0", "use_b.n1.0")
    assert (first.energy_mj, first.overhead_mj) == (165, 15)
    assert (first.carbon_location_ng, first.carbon_market_ng) == (495, 330)
    assert first.quantities == {"cpu_milli_ms": 500 * 1000 + 500 * 400}
    assert (first.site, first.zone, first.country) == ("lyon", "lyon-a", "FR")
    assert first.country_basis == "asserted by the operator"
    assert (first.energy_method, first.energy_quality.value) == ("a model", "D")
    assert (first.subject, first.policy_decision) == ("this-machine", "sha256:aa")
    assert (second.energy_mj, second.workload) == (8, "job_1")


def test_an_attempt_without_facts_is_a_bug():
    with pytest.raises(InvariantViolated, match="facts of attempt c"):
        job_usages(allocation({"c0": 1}, {"c0": 0}), [task("c0", "c")], FACTS, carbon)


def test_held_time_of_adjacent_intervals_adds_up():
    edges = [1, 999_999, 1_500_000, 7_999_999, 8_000_001]
    parts = [
        held_quantities([task("a0", "a", start_ns=a, end_ns=b)]).get("cpu_milli_ms", 0)
        for a, b in itertools.pairwise(edges)
    ]
    whole = held_quantities([task("a0", "a", start_ns=edges[0], end_ns=edges[-1])])
    assert sum(parts) == whole["cpu_milli_ms"] == 500 * 8


def test_memory_is_in_mb_and_devices_count():
    held = held_quantities([task("a0", "a", memory_bytes=2_500_000, devices=2)])
    assert held == {"accelerator_ms": 2000, "cpu_milli_ms": 500_000, "memory_mb_ms": 2500}


def test_what_was_not_held_is_left_out():
    assert held_quantities([task("a0", "a", cpu_milli=0)]) == {}
