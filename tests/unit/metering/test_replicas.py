"""When a model server's interval closes, what its requests carry then, and what its owner does."""

from dataclasses import replace

import pytest

from moulin.domain.errors import InvariantViolated
from moulin.domain.factory import EnergyClass, Site
from moulin.domain.ids import AttemptId, NodeId, OrganisationId, ProjectId, StepId, WorkloadId
from moulin.domain.usage import NodeAllocation, NodeReading, RequestUsage, TaskReading
from moulin.metering.replicas import (
    MeteringRules,
    OpenMetering,
    ReplicaInterval,
    RequestBegun,
    absorb,
    close_intervals,
    replica_intervals,
)
from moulin.metering.usage import AttemptFacts

FACTS = {
    AttemptId("r1"): AttemptFacts(
        attempt=AttemptId("r1"),
        workload=WorkloadId("end_1"),
        organisation=OrganisationId("owner"),
        project=ProjectId("serving"),
        zone="z",
        site=Site(name="s", country="FR"),
        subject="this-machine",
        model_digest="sha256:m",
        policy_decision="sha256:d",
    )
}
DEADLINE = 100


def share_evenly(energy_mj, requests, *, standing_mj, window_ns):
    if not requests:
        return {}, energy_mj
    each = (energy_mj - standing_mj) // len(requests)
    return {r.request: each for r in requests}, energy_mj - each * len(requests)


RULES = MeteringRules(
    share=share_evenly,
    share_method="evenly",
    carbon=lambda energy_mj, site: (energy_mj, 0),
    deadline_ns=DEADLINE,
)


def interval(start_ns, end_ns, energy_mj=100, **more):
    return ReplicaInterval(
        replica=AttemptId("r1"),
        node=more.pop("node", NodeId("n1")),
        start_ns=start_ns,
        end_ns=end_ns,
        energy_mj=energy_mj,
        overhead_mj=more.pop("overhead_mj", 0),
        method="a model",
        quality=more.pop("quality", EnergyClass.SPECIFICATION_MODEL),
        uncertainty_ppm=350_000,
        **more,
    )


def request(name, start_ns, end_ns, *, replica="r1", is_estimated=False):
    return RequestUsage(
        request=name,
        organisation=OrganisationId("customer"),
        project=ProjectId("chat"),
        key="k",
        model="tiny",
        replica=AttemptId(replica),
        zone="z",
        start_ns=start_ns,
        end_ns=end_ns,
        tokens_input=5,
        tokens_output=3,
        outcome="completed",
        is_estimated=is_estimated,
    )


def close(state, now_ns, journal_until_ns=10**9):
    return close_intervals(
        state, now_ns, journal_until_ns=journal_until_ns, facts=FACTS, rules=RULES
    )


def energies(closing):
    return {usage.id: usage.energy_mj for usage in closing.usages}


def test_an_interval_without_requests_is_its_owners():
    state = absorb(OpenMetering(), intervals=[interval(0, 10, quantities={"cpu_milli_ms": 9})])
    closing = close(state, 10)
    (usage,) = closing.usages
    assert (usage.id, usage.energy_mj, usage.project) == ("use_r1.n1.0", 100, "serving")
    assert usage.quantities == {"cpu_milli_ms": 9}
    assert usage.subject == "this-machine"
    assert "no request carried" in usage.energy_method
    assert closing.state.intervals == ()


def test_a_settled_request_becomes_a_usage_of_its_own_project():
    state = absorb(
        OpenMetering(), intervals=[interval(0, 10, overhead_mj=30)], settled=[request("q1", 2, 5)]
    )
    owner, asked = close(state, 10).usages
    assert (owner.energy_mj, asked.energy_mj, asked.overhead_mj) == (0, 130, 30)
    assert (asked.id, asked.project, asked.organisation) == ("use_q1", "chat", "customer")
    assert asked.quantities == {"tokens_input": 5, "tokens_output": 3}
    assert (asked.subject, asked.model_digest, asked.policy_decision) == (
        "this-machine",
        "sha256:m",
        "sha256:d",
    )
    assert (asked.workload, asked.attempt, asked.request) == ("end_1", "r1", "q1")
    assert asked.energy_method == "a model; evenly"
    assert (asked.carbon_location_ng, asked.is_estimated) == (130, False)


def test_an_interval_waits_for_a_request_begun_in_it():
    state = absorb(
        OpenMetering(),
        intervals=[interval(0, 10), interval(10, 20)],
        begun=[RequestBegun(request="q1", begun_ns=4, replica=AttemptId("r1"))],
    )
    waiting = close(state, 50)
    assert waiting.usages == ()
    settled = absorb(waiting.state, settled=[request("q1", 4, 14)])
    assert energies(close(settled, 50)) == {"use_r1.n1.0": 0, "use_r1.n1.10": 0, "use_q1": 200}


def test_a_request_begun_later_or_elsewhere_does_not_hold_an_interval_up():
    state = absorb(
        OpenMetering(),
        intervals=[interval(0, 10)],
        begun=[
            RequestBegun(request="q1", begun_ns=10, replica=AttemptId("r1")),
            RequestBegun(request="q2", begun_ns=4, replica=AttemptId("r2")),
        ],
    )
    assert len(close(state, 10).usages) == 1


def test_a_request_with_unknown_replica_holds_every_interval_up():
    state = absorb(
        OpenMetering(),
        intervals=[interval(0, 10)],
        begun=[RequestBegun(request="q1", begun_ns=4)],
    )
    assert close(state, 10).usages == ()


def test_an_interval_waits_for_the_journals():
    state = absorb(OpenMetering(), intervals=[interval(0, 10)])
    assert close(state, 10, journal_until_ns=9).usages == ()
    assert len(close(state, 10, journal_until_ns=10).usages) == 1


def test_at_the_deadline_an_interval_closes_without_the_request_which_says_so_later():
    state = absorb(
        OpenMetering(),
        intervals=[interval(0, 10)],
        begun=[RequestBegun(request="q1", begun_ns=4, replica=AttemptId("r1"))],
    )
    assert close(state, 10 + DEADLINE - 1).usages == ()
    closed = close(state, 10 + DEADLINE)
    assert energies(closed) == {"use_r1.n1.0": 100}
    late = absorb(closed.state, settled=[request("q1", 4, 8)])
    (asked,) = close(late, 10 + DEADLINE).usages
    assert (asked.energy_mj, asked.is_estimated) == (0, True)
    assert asked.energy_method.startswith("not measured")
    assert asked.quantities == {"tokens_input": 5, "tokens_output": 3}


def test_a_request_is_final_only_when_its_last_interval_is_closed():
    state = absorb(OpenMetering(), intervals=[interval(0, 10)], settled=[request("q1", 4, 14)])
    first = close(state, 10)
    assert energies(first) == {"use_r1.n1.0": 0}
    second = close(absorb(first.state, intervals=[interval(10, 20, 60)]), 20)
    assert energies(second) == {"use_r1.n1.10": 0, "use_q1": 160}
    assert second.state.carried == {}


def test_a_replica_on_two_nodes_is_closed_when_both_are():
    state = absorb(
        OpenMetering(),
        intervals=[interval(0, 10), interval(0, 5, node=NodeId("n2"))],
        settled=[request("q1", 1, 8)],
    )
    first = close(state, 10)
    assert "use_q1" not in energies(first)
    second = close(absorb(first.state, intervals=[interval(5, 10, node=NodeId("n2"))]), 10)
    assert energies(second)["use_q1"] == 300


def test_a_request_whose_interval_never_comes_is_charged_without_energy():
    state = absorb(OpenMetering(), settled=[request("q1", 4, 8)])
    assert close(state, 8 + 2 * DEADLINE - 1).usages == ()
    (asked,) = close(state, 8 + 2 * DEADLINE).usages
    assert (asked.energy_mj, asked.is_estimated, asked.energy_quality.value) == (0, True, "E")


ENDED = {replica: replace(facts, has_ended=True) for replica, facts in FACTS.items()}


def test_a_request_that_ends_after_its_replica_waits_for_no_interval():
    state = absorb(
        OpenMetering(),
        intervals=[interval(0, 10), interval(10, 20)],
        begun=[RequestBegun(request="q2", begun_ns=15, replica=AttemptId("r1"))],
        settled=[request("q1", 4, 30)],
    )
    first = close_intervals(state, 25, journal_until_ns=40, facts=ENDED, rules=RULES)
    assert energies(first) == {"use_r1.n1.0": 0}, "an interval of it is still open"
    told = absorb(first.state, settled=[request("q2", 15, 31)])
    second = close_intervals(told, 35, journal_until_ns=40, facts=ENDED, rules=RULES)
    assert energies(second) == {"use_r1.n1.10": 0, "use_q1": 150, "use_q2": 50}
    assert not any(usage.is_estimated for usage in second.usages)
    assert close(told, 35, journal_until_ns=40).usages[-1].id == "use_r1.n1.10"


def test_a_request_to_a_replica_that_is_gone_is_final_at_once_and_carries_nothing():
    metered = close(absorb(OpenMetering(), intervals=[interval(0, 10)]), 10).state
    told = absorb(metered, settled=[request("q1", 11, 12)])
    (asked,) = close_intervals(told, 13, journal_until_ns=13, facts=ENDED, rules=RULES).usages
    assert (asked.id, asked.energy_mj, asked.is_estimated) == ("use_q1", 0, False)


def test_a_request_to_a_replica_that_was_never_metered_says_that_energy_is_missing():
    state = absorb(OpenMetering(), settled=[request("q1", 4, 8)])
    (asked,) = close_intervals(state, 9, journal_until_ns=9, facts=ENDED, rules=RULES).usages
    assert (asked.energy_mj, asked.is_estimated) == (0, True)


def test_the_worst_class_of_the_intervals_counts():
    state = absorb(
        OpenMetering(),
        intervals=[interval(0, 10), interval(10, 20, quality=EnergyClass.CONSTANT)],
        settled=[request("q1", 4, 14)],
    )
    assert close(state, 20).usages[-1].energy_quality is EnergyClass.CONSTANT


def test_an_estimated_request_stays_estimated():
    state = absorb(
        OpenMetering(),
        intervals=[interval(0, 10)],
        settled=[request("q1", 1, 2, is_estimated=True)],
    )
    assert close(state, 10).usages[-1].is_estimated


def test_records_that_come_twice_change_nothing():
    once = absorb(
        OpenMetering(),
        intervals=[interval(0, 10)],
        begun=[RequestBegun(request="q1", begun_ns=1)],
        settled=[request("q1", 1, 2)],
    )
    again = absorb(
        once,
        intervals=[interval(0, 10, 999)],
        begun=[RequestBegun(request="q1", begun_ns=1)],
        settled=[request("q1", 1, 2)],
    )
    assert again == once
    closed = close(once, 10).state
    assert absorb(closed, intervals=[interval(0, 10)]) == closed


def test_a_request_of_an_unknown_replica_is_handed_back():
    state = absorb(OpenMetering(), settled=[request("q1", 1, 2, replica="r9")])
    closing = close(state, 2 + 2 * DEADLINE)
    assert [r.request for r in closing.unplaced] == ["q1"]
    assert (closing.usages, closing.state.settled) == ((), {})


def test_an_interval_of_an_unknown_replica_is_a_bug():
    state = absorb(OpenMetering(), intervals=[interval(0, 10)])
    with pytest.raises(InvariantViolated):
        close_intervals(state, 10, journal_until_ns=10, facts={}, rules=RULES)


def test_an_interval_is_cut_out_of_a_node_allocation():
    tasks = [
        TaskReading(
            step=StepId(step),
            attempt=AttemptId(attempt),
            workload=WorkloadId("end_1"),
            organisation=OrganisationId("o"),
            project=ProjectId("p"),
            start_ns=0,
            end_ns=2_000_000,
            cpu_ns=0,
            cpu_milli=1000,
            memory_bytes=0,
        )
        for step, attempt in (("r2.t0", "r2"), ("r1.t0", "r1"), ("r1.t1", "r1"))
    ]
    reading = NodeReading(
        node=NodeId("n1"),
        zone="z",
        start_ns=0,
        end_ns=2_000_000,
        cpu_ns=0,
        cpu_milli=4000,
        energy_mj=100,
        idle_mj=40,
        method="a model",
        quality=EnergyClass.SPECIFICATION_MODEL,
        uncertainty_ppm=350_000,
    )
    split = NodeAllocation(
        reading=reading,
        task_mj={StepId("r1.t0"): 20, StepId("r1.t1"): 30, StepId("r2.t0"): 5},
        idle_mj=0,
        unattributed_mj=45,
        overhead_mj=10,
        task_overhead_mj={StepId("r1.t0"): 2, StepId("r1.t1"): 3, StepId("r2.t0"): 1},
        task_standing_mj={StepId("r1.t0"): 7, StepId("r1.t1"): 8, StepId("r2.t0"): 0},
    )
    first, second = replica_intervals(split, tasks)
    assert (first.replica, first.energy_mj, first.overhead_mj, first.standing_mj) == (
        "r1",
        50,
        5,
        15,
    )
    assert first.quantities == {"cpu_milli_ms": 4000}
    assert (second.replica, second.energy_mj, second.method) == ("r2", 5, "a model")
