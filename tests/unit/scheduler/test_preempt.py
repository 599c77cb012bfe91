"""Who gives way to whom, only where the operator allows it, and what becomes of those who did."""

import pytest

from moulin.domain.factory import Pool, PreemptionScope, Project, Quota, Site, Zone
from moulin.domain.ids import WorkloadId
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StopCause
from moulin.domain.reasons import sentence
from moulin.domain.workload import AttemptState, Retry, WorkloadState
from moulin.scheduler import explain, plan_digest, preempt, start_step, workload_view
from tests.unit.scheduler.world import SECOND, World, endpoint, job, node, world

MINUTE = 60 * SECOND


def preemptive(
    *nodes: object, scope: PreemptionScope = PreemptionScope.ALL, **project: object
) -> World:
    here = world(*nodes)  # type: ignore[arg-type]
    here.now_ns = 1000 * MINUTE
    allow(here, scope)
    here.declare(Project(name="web", organisation="acme", **project))  # type: ignore[arg-type]
    here.declare(Project(name="lab", organisation="acme"))
    return here


def allow(here: World, scope: PreemptionScope) -> None:
    here.declare(Pool(name="pa", zone="a", engine="local", machine_class="cpu", preemption=scope))


def run_all(here: World) -> None:
    here.cycle()
    for step, task in list(here.state.steps.items()):
        if task.phase is None:
            here.run(step, started_at_ns=here.now_ns)


def stopped(here: World) -> list[str]:
    return [stop.attempt for stop in here.decide().stops if stop.cause is StopCause.PREEMPTED]


def say(here: World, name: str) -> list[str]:
    return [
        sentence(each) for each in explain(here.state, WorkloadId(name), here.now_ns, here.policy)
    ]


def test_nothing_is_preempted_where_the_operator_has_not_said_so():
    here = preemptive(node("n1"), scope=PreemptionScope.NONE)
    here.submit("low", job(4, priority=0))
    run_all(here)
    here.submit("high", job(4, priority=100))
    assert stopped(here) == []


@pytest.mark.parametrize(
    ("scope", "project", "wanted"),
    [
        (PreemptionScope.ALL, "web", ["low.u0.g1"]),
        (PreemptionScope.ALL, "lab", ["low.u0.g1"]),
        (PreemptionScope.PROJECT, "web", ["low.u0.g1"]),
        (PreemptionScope.PROJECT, "lab", []),
    ],
)
def test_whose_work_gives_way_is_the_operators_choice(scope, project, wanted):
    here = preemptive(node("n1"), scope=scope)
    here.submit("low", job(4, priority=10))
    run_all(here)
    here.submit("high", job(4, priority=60), project)
    assert stopped(here) == wanted


def test_a_project_that_is_not_preemptible_keeps_what_it_runs():
    here = preemptive(node("n1"), is_preemptible=False)
    here.submit("low", job(4, priority=10))
    run_all(here)
    here.submit("high", job(4, priority=60), "lab")
    assert stopped(here) == []


def test_a_small_task_that_holds_a_whole_node_gives_all_of_it():
    here = preemptive(node("n1", is_exclusive=True))
    here.submit("low", job(1, priority=0))
    run_all(here)
    here.submit("high", job(4, priority=100))
    assert stopped(here) == ["low.u0.g1"]


@pytest.mark.parametrize("priority", [49, 50])
def test_only_a_higher_priority_takes_a_place(priority):
    here = preemptive(node("n1"))
    here.submit("low", job(4))
    run_all(here)
    here.submit("other", job(4, priority=priority))
    assert stopped(here) == []


def test_an_endpoint_gives_way_to_nobody_and_may_take_a_place():
    here = preemptive(node("n1"))
    here.submit("chat", endpoint(1, 4, priority=10))
    run_all(here)
    here.submit("high", job(4, priority=60))
    assert stopped(here) == []
    other = preemptive(node("n1"))
    other.submit("low", job(4, priority=10))
    run_all(other)
    other.submit("chat", endpoint(1, 4, priority=60))
    assert stopped(other) == ["low.u0.g1"]


def test_nobody_gives_way_for_what_would_not_fit_even_then():
    here = preemptive(node("n1"), node("n2"))
    here.submit("low", job(2, priority=10))
    here.submit("firm", job(3, priority=60))
    run_all(here)
    here.submit("gang", job(4, nodes=2, priority=60))
    assert stopped(here) == []


def test_nobody_gives_way_over_quota():
    here = preemptive(node("n1"), quota=Quota(cpu_milli=4000))
    here.submit("low", job(4, priority=10), "lab")
    here.submit("own", job(4, priority=70))
    run_all(here)
    assert here.state.workloads[WorkloadId("own")].attempts_live
    here.submit("more", job(4, priority=80))
    assert stopped(here) == []


def test_nobody_gives_way_where_power_would_be_short_even_then():
    nodes = [node(f"n{i}", idle_mw=0, peak_mw=400_000) for i in (1, 2)]
    here = preemptive(*nodes)
    here.declare(Site(name="lyon", country="FR", power_envelope_w=400))
    here.submit("low", job(2, priority=10))
    here.submit("firm", job(2, priority=90))
    run_all(here)
    here.submit("high", job(4, priority=60))
    assert stopped(here) == []  # n1 holds both, n2 is free: only power is short, and stays so


def test_the_least_work_is_lost():
    here = preemptive(node("n1"), node("n2"))
    here.submit("old", job(4, priority=0))
    run_all(here)
    here.now_ns += 30 * MINUTE
    here.submit("young", job(4, priority=40))
    run_all(here)
    here.now_ns += MINUTE
    here.submit("high", job(3, priority=60))
    assert stopped(here) == ["young.u0.g1"]


def test_accelerator_time_counts_before_cpu_time():
    here = preemptive(node("n1", 8, 16, 2), node("n2", 8))
    here.submit("gpu", job(1, 1, 2, priority=10))
    run_all(here)
    here.submit("cpu", job(8, priority=10))
    run_all(here)
    assert here.state.attempts["cpu.u0.g1"].tasks[0].node == "n2"  # type: ignore[index]
    here.now_ns += MINUTE
    here.submit("high", job(8, priority=60))
    assert stopped(here) == ["cpu.u0.g1"]


def test_nobody_who_could_stay_gives_way_with_a_gang():
    here = preemptive(node("n1"), node("n2"), node("n3"))
    here.submit("pair", job(3, nodes=2, priority=10))
    run_all(here)
    here.now_ns += MINUTE
    here.submit("single", job(4, priority=10))
    run_all(here)
    here.now_ns += 10 * MINUTE
    here.submit("gang", job(4, nodes=2, priority=60))
    assert stopped(here) == ["pair.u0.g1"]  # its two nodes are enough


def test_what_ends_anyway_is_waited_for():
    here = preemptive(node("n1"), node("n2"))
    here.submit("a", job(4, priority=10))
    here.submit("b", job(4, priority=10))
    run_all(here)
    here.submit("high", job(4, priority=60))
    here.cycle()
    assert stopped(here) == []  # the first of them is ending; the other stays
    assert len([a for a in here.state.attempts.values() if a.preempted_by]) == 1


def test_a_whole_preemption_from_the_decision_to_the_new_start():
    here = preemptive(node("n1"))
    here.submit("low", job(4, priority=10, retry=Retry(attempts_max=1), stop_grace_s=30))
    run_all(here)
    here.now_ns += 5 * MINUTE
    here.submit("high", job(4, priority=60))
    plan = here.cycle()
    assert [(stop.attempt, stop.grace_s) for stop in plan.stops] == [("low.u0.g1", 30)]
    assert [(each.nodes, each.attempts) for each in plan.preemptions] == [(("n1",), ("low.u0.g1",))]
    assert say(here, "low") == [
        "attempt 1 is being stopped to make room for high, of a higher priority"
    ]
    assert say(here, "high")[-1] == (
        "low, of priority 10 at most, is being stopped to make room for it (priority 60), and its"
        " nodes are kept"
    )
    here.exit("low.u0.g1.t0", 143)
    assert here.placed() == ["high"]
    here.cycle()
    low = here.state.workloads[WorkloadId("low")]
    assert low.units[0].is_waiting
    assert (low.units[0].failures, low.units[0].losses, low.units[0].preemptions) == (0, 0, 1)
    assert (
        "attempt 1 was stopped to make room for high, of a higher priority;"
        " it starts again when there is room"
    ) in say(here, "low")
    assert low.reasons[0].code.value == "PreemptedBy"
    assert not stopped(here)
    here.exit("high.u0.g1.t0")
    here.cycle()
    step = start_step(here.state, low.units[0].attempt, 0)  # type: ignore[arg-type]
    assert (step.generation, step.env["MOULIN_RESTART_COUNT"]) == (2, "1")
    here.exit("low.u0.g2.t0")
    here.cycle()
    assert low.state is WorkloadState.SUCCEEDED
    [unit] = workload_view(here.state, WorkloadId("low")).units
    assert [(each.state, each.stop_cause) for each in unit.attempts] == [
        ("preempted", "preempted"),
        ("succeeded", ""),
    ]


def test_nodes_that_were_given_up_are_kept_until_the_last_of_them_is_free():
    here = preemptive(node("n1"), node("n2"))
    here.submit("a", job(4, priority=10))
    here.submit("b", job(4, priority=10))
    run_all(here)
    here.submit("gang", job(4, nodes=2, priority=60))
    here.cycle()
    here.exit("a.u0.g1.t0", 143)
    here.submit("small", job(1, priority=50))
    assert here.placed() == []  # neither what gave way nor anything else gets in between
    here.exit("b.u0.g1.t0", 143)
    assert here.placed() == ["gang"]


def test_nodes_are_kept_for_a_while_and_not_for_ever():
    here = preemptive(node("n1"), node("n2"))
    here.submit("a", job(4, priority=10))
    here.submit("b", job(4, priority=10))
    run_all(here)
    here.submit("gang", job(4, nodes=2, priority=60))
    here.cycle()
    here.exit("a.u0.g1.t0", 143)
    here.see("b.u0.g1.t0", TaskPhase.UNREACHABLE)
    here.cycle()
    [promise] = here.state.promises.values()
    here.now_ns = promise.until_ns
    assert stopped(here) == []  # the other still ends: nobody else is asked to


def test_what_gave_way_is_left_alone_for_a_while_when_it_runs_again():
    here = preemptive(node("n1"))
    here.submit("low", job(4, priority=10, time_limit_s=10**7))
    run_all(here)
    for preemptions in (1, 2):
        here.now_ns += 1000 * MINUTE
        high = here.submit(f"high{preemptions}", job(4, priority=60))
        here.cycle()
        here.exit(f"low.u0.g{preemptions}.t0", 143)
        here.cycle()
        here.exit(f"{high}.u0.g1.t0")
        run_all(here)
        assert here.state.workloads[WorkloadId("low")].units[0].generation == preemptions + 1
    here.submit("high3", job(4, priority=60))
    here.now_ns += 20 * MINUTE - SECOND
    assert stopped(here) == []
    here.now_ns += SECOND
    assert stopped(here) == ["low.u0.g3"]


def test_what_ended_by_itself_before_it_was_to_give_way_is_not_run_again():
    here = preemptive(node("n1"))
    here.submit("low", job(4, priority=10))
    run_all(here)
    here.now_ns += MINUTE
    here.submit("high", job(4, priority=60))
    here.cycle()
    here.see("low.u0.g1.t0", TaskPhase.EXITED, 0, ended_at_ns=here.now_ns - SECOND)
    assert here.state.attempts["low.u0.g1"].state is AttemptState.SUCCEEDED  # type: ignore[index]
    here.cycle()
    assert here.state.workloads[WorkloadId("low")].state is WorkloadState.SUCCEEDED


def test_a_stop_that_was_asked_for_meanwhile_is_obeyed():
    from moulin.domain.events import WorkloadStopRequested

    here = preemptive(node("n1"))
    low = here.submit("low", job(4, priority=10))
    run_all(here)
    here.submit("high", job(4, priority=60))
    here.cycle()
    here.add(WorkloadStopRequested(workload=low, by="ada"))
    here.exit("low.u0.g1.t0", 143)
    here.cycle()
    assert here.state.workloads[low].state is WorkloadState.CANCELLED


def test_the_digest_of_a_plan_says_who_gives_way():
    here = preemptive(node("n1"))
    here.submit("low", job(4, priority=10))
    run_all(here)
    calm = plan_digest(here.decide())
    here.submit("high", job(4, priority=60))
    assert plan_digest(here.decide()) != calm


def test_nodes_of_another_zone_help_nobody():
    here = preemptive(node("n1"))
    here.declare(
        Zone(name="b", site="lyon"), Pool(name="pb", zone="b", engine="local", machine_class="cpu")
    )
    here.join(node("m1"), pool="pb")
    here.submit("low", job(4, priority=10))
    here.submit("firm", job(4, priority=10))
    run_all(here)
    here.submit("gang", job(4, nodes=2, priority=60))
    assert stopped(here) == []


def test_who_was_chosen_before_a_gang_made_it_needless_stays(monkeypatch):
    monkeypatch.setattr(preempt, "GANGS_MAX", 0)
    here = preemptive(node("n1", 4), node("n2", 4))
    here.submit("pair", job(2, nodes=2, priority=10))
    run_all(here)
    here.now_ns += MINUTE
    here.submit("single", job(2, priority=10))
    here.submit("firm", job(2, priority=90))
    run_all(here)
    here.now_ns += MINUTE
    here.submit("gang", job(2, nodes=2, priority=60))
    assert stopped(here) == ["pair.u0.g1"]
