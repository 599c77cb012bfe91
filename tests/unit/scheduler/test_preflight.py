"""Gangs wait for a check of their nodes, a bad node is found by who it fails with, and spares step in."""

from dataclasses import replace

import pytest

from moulin.domain.events import FactoryApplied, NodeJoined, ObjectChange, WorkloadStopRequested
from moulin.domain.factory import ObjectKind, Pool
from moulin.domain.health import Verdict
from moulin.domain.ids import AttemptId, NodeId, WorkloadId
from moulin.domain.node_events import GangChecked, NodeJudged
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import Place, StopCause
from moulin.domain.preflight import LinkMeasured, Preflight
from moulin.domain.reasons import Reason, ReasonCode
from moulin.scheduler import explain, node_views, start_step, workload_view
from tests.unit.scheduler.world import BASE, SECOND, World, job, node, world

WANTED = Preflight(every_s=3600, bytes_per_s_min=10**9, round_trip_ns_max=10**6, time_limit_s=20)
MB = 10**6


def mill(count: int = 3, wanted: Preflight | None = WANTED) -> World:
    pool = Pool(name="pa", zone="a", engine="local", machine_class="cpu", preflight=wanted)
    here = world(*(node(f"n{index}", cpus=1, boot_id="b") for index in range(count)))
    here.now_ns = 1000 * SECOND
    here.declare(*BASE[:-2], pool, BASE[-1])
    return here


def link(sender: str, receiver: str, **more: object) -> LinkMeasured:
    good = LinkMeasured(
        sender=NodeId(sender),
        receiver=NodeId(receiver),
        bytes_per_s=2 * 10**9,
        round_trip_ns=50_000,
    )
    return replace(good, **more)  # type: ignore[arg-type]


def names(place: Place) -> list[str]:
    return [task.node for task in place.tasks]


def pair(place: Place) -> tuple[str, str]:
    first, second = names(place)
    return first, second


def reason_of(here: World, name: str) -> Reason:
    row = here.state.nodes.row(NodeId(name))
    assert row is not None
    assert row.health.reason is not None
    return row.health.reason


def placed(here: World) -> Place:
    """Return the one placement that comes, now or in the next decision."""
    found = here.cycle().places or here.cycle().places
    assert len(found) == 1
    return found[0]


def measure(here: World, place: Place, *bad: tuple[str, str], slow: int = MB) -> None:
    """End a check in which each link of the ring was well but the `bad` ones."""
    nodes = names(place)
    for rank in range(len(nodes)):
        here.run(f"{place.attempt}.t{rank}")
    for rank in range(len(nodes)):
        here.exit(f"{place.attempt}.t{rank}")
    assert not here.cycle().places
    links = []
    for index, receiver in enumerate(nodes):
        ends = (nodes[index - 1], receiver)
        links.append(
            link(*ends, bytes_per_s=slow if ends in bad or ends[::-1] in bad else 2 * 10**9)
        )
    here.add(GangChecked(attempt=place.attempt, links=tuple(links), transport="sockets"))


def verdicts(here: World) -> dict[str, str]:
    return {view.node: view.health.value for view in node_views(here.state)}


def codes(here: World) -> list[str]:
    return [
        each.code.value for each in explain(here.state, WorkloadId("x"), here.now_ns, here.policy)
    ]


def test_a_gang_starts_after_a_check_of_its_nodes_and_the_next_one_at_once():
    here = mill(2)
    here.submit("x", job(nodes=2))
    check = placed(here)
    assert check.check_s == WANTED.time_limit_s + 60
    step = start_step(here.state, check.attempt, 1)
    assert step.time_limit_s == check.check_s
    view = workload_view(here.state, WorkloadId("x"))
    assert (view.state, view.started_at_ns, view.units[0].is_check) == ("placed", 0, True)
    assert codes(here) == ["Checked"]
    measure(here, check)
    gang = placed(here)
    assert (gang.attempt, gang.check_s, names(gang)) == ("x.u0.g2", 0, names(check))
    assert codes(here) == []
    assert start_step(here.state, gang.attempt, 0).env["MOULIN_RESTART_COUNT"] == "0"
    assert workload_view(here.state, WorkloadId("x")).units[0].restarts == 0
    for rank in (0, 1):
        here.exit(f"x.u0.g2.t{rank}")
    here.cycle()
    assert workload_view(here.state, WorkloadId("x")).state == "succeeded"
    here.submit("y", job(nodes=2))
    assert placed(here).check_s == 0
    for rank in (0, 1):
        here.exit(f"y.u0.g1.t{rank}")
    here.cycle()
    here.now_ns += 3601 * SECOND
    here.submit("z", job(nodes=2))
    assert placed(here).check_s > 0


def test_nothing_is_checked_for_one_node_or_without_being_wanted():
    here = mill(2)
    here.submit("x", job())
    assert placed(here).check_s == 0
    here = mill(2, None)
    here.submit("x", job(nodes=2))
    assert placed(here).check_s == 0


def test_of_three_the_one_that_fails_with_both_is_at_fault_and_a_spare_takes_its_place():
    here = mill(4)
    here.submit("x", job(nodes=3))
    check = placed(here)
    first, second, bad = names(check)
    measure(here, check, (second, bad), (bad, first))
    again = placed(here)
    assert verdicts(here)[bad] == "quarantined"
    assert again.check_s > 0  # the spare was never checked
    assert bad not in names(again)
    assert "1 MB/s, at least 1000 are wanted" in reason_of(here, bad).parameters["value"]
    measure(here, again)
    gang = placed(here)
    assert gang.check_s == 0
    assert sorted(names(gang)) == sorted(names(again))
    assert list(verdicts(here).values()).count("healthy") == 3


def test_of_two_nobody_knows_until_one_passes_with_another():
    here = mill(3)
    here.submit("x", job(nodes=2))
    check = placed(here)
    measure(here, check, pair(check))
    again = placed(here)
    assert {verdicts(here)[name] for name in names(check)} == {"suspect"}
    assert set(names(again)) != set(names(check))
    [kept] = set(names(again)) & set(names(check))
    measure(here, again)
    gang = placed(here)
    assert set(names(gang)) == set(names(again))
    [other] = set(names(check)) - {kept}
    assert verdicts(here)[other] == "quarantined"


def test_two_that_fail_together_wait_and_are_tried_again_later():
    here = mill(2)
    here.submit("x", job(nodes=2))
    check = placed(here)
    measure(here, check, pair(check))
    assert not here.cycle().places
    assert not here.cycle().places
    assert codes(here) == ["NodesApart"]
    # Meanwhile others may have them.
    here.submit("small", job(priority=-1))
    assert placed(here).workload == "small"
    here.exit("small.u0.g1.t0")
    here.now_ns += 601 * SECOND
    assert placed(here).check_s > 0


def test_what_runs_on_a_node_that_failed_a_check_goes_on():
    here = mill(4)
    here.join(node("big", cpus=4, boot_id="b"))
    here.submit("beside", job(2))
    [beside] = here.cycle().places
    here.run(f"{beside.attempt}.t0")
    here.submit("x", job(nodes=5))
    check = placed(here)
    assert beside.tasks[0].node == "big"
    ring = names(check)
    place = ring.index("big")
    measure(here, check, (ring[place - 1], "big"), ("big", ring[(place + 1) % 5]))
    here.cycle()
    assert verdicts(here)["big"] == "quarantined"
    assert not [stop for stop in here.cycle().stops if stop.attempt == beside.attempt]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"problem": "it hung up"}, "it hung up"),
        ({"round_trip_ns": 2_000_000}, "a round trip took 2000 us, at most 1000 are wanted"),
    ],
)
def test_a_link_is_bad_for_more_than_its_rate(bad, words):
    here = mill(2)
    here.submit("x", job(nodes=2))
    check = placed(here)
    links = (link(*names(check), **bad),)
    here.add(GangChecked(attempt=check.attempt, links=links))
    here.cycle()
    [first, _] = sorted(names(check))
    assert verdicts(here)[first] == "suspect"
    assert reason_of(here, first).parameters["value"].endswith(words)


def test_a_check_that_says_nothing_keeps_nobody_waiting():
    here = mill(2)
    here.submit("x", job(nodes=2))
    check = placed(here)
    for rank in (0, 1):
        here.exit(f"{check.attempt}.t{rank}", 127)
    here.cycle()
    here.add(GangChecked(attempt=check.attempt, links=(), words="no python3"))
    gang = placed(here)
    assert gang.check_s == 0
    assert set(verdicts(here).values()) == {"healthy"}
    # Its own failures count from here.
    assert here.state.workloads[WorkloadId("x")].units[0].failures == 0


def test_a_check_that_hangs_is_ended_and_its_gang_starts():
    here = mill(2)
    here.submit("x", job(nodes=2, time_limit_s=10_000))
    check = placed(here)
    for rank in (0, 1):
        here.run(f"{check.attempt}.t{rank}", started_at_ns=here.now_ns)
    here.now_ns += (check.check_s + 1) * SECOND
    [stop] = here.cycle().stops
    assert stop.cause is StopCause.GANG_BROKEN
    for rank in (0, 1):
        here.exit(f"{check.attempt}.t{rank}", 143)
    here.add(GangChecked(attempt=check.attempt, links=()))
    assert placed(here).check_s == 0


def test_a_job_that_is_cancelled_while_its_nodes_are_checked_ends():
    here = mill(2)
    workload = here.submit("x", job(nodes=2))
    check = placed(here)
    here.run(f"{check.attempt}.t0")
    here.add(WorkloadStopRequested(workload=workload, by="ada"))
    assert [stop.cause for stop in here.cycle().stops] == [StopCause.CANCELLED]
    for rank in (0, 1):
        here.exit(f"{check.attempt}.t{rank}", 143)
    here.cycle()
    assert workload_view(here.state, workload).state == "cancelled"


def test_nobody_else_gets_the_nodes_between_the_check_and_the_gang():
    here = mill(2)
    here.submit("x", job(nodes=2))
    check = placed(here)
    here.submit("later", job(priority=-1))
    for rank in (0, 1):
        here.exit(f"{check.attempt}.t{rank}")
    here.add(GangChecked(attempt=check.attempt, links=(link(*names(check)),)))
    assert [place.workload for place in here.cycle().places] == []
    assert [place.workload for place in here.cycle().places] == ["x"]


def test_a_restarted_machine_is_checked_again_and_a_person_vouches():
    here = mill(2)
    here.submit("x", job(nodes=2))
    check = placed(here)
    measure(here, check)
    gang = placed(here)
    for rank in (0, 1):
        here.exit(f"{gang.attempt}.t{rank}")
    here.cycle()
    here.add(NodeJoined(pool="pa", capacity=node("n0", cpus=1, boot_id="c")))
    here.submit("y", job(nodes=2))
    again = placed(here)
    assert again.check_s > 0
    measure(here, again, pair(again))
    here.cycle()
    reason = Reason(code=ReasonCode.NODE_SAID, parameters={"actor": "ada", "words": "new cable"})
    for name in ("n0", "n1"):
        judged = NodeJudged(node=NodeId(name), verdict=Verdict.HEALTHY, reason=reason, by="ada")
        here.add(judged)
    assert placed(here).check_s > 0


def test_checks_of_what_is_gone_change_nothing():
    here = mill(2)
    digest = here.state.digest()
    here.add(GangChecked(attempt=AttemptId("y.u0.g1"), links=(link("n0", "n7"),)))
    assert here.state.digest() != digest  # the sequence
    assert set(verdicts(here).values()) == {"healthy"}
    here.submit("x", job(nodes=2))
    check = placed(here)
    gone = ObjectChange(kind=ObjectKind.POOL, name="pa", value=None)
    here.add(FactoryApplied(managed_by="test", changes=(gone,)))
    for rank in (0, 1):
        here.see(f"{check.attempt}.t{rank}", TaskPhase.EXITED, 0)
    here.add(GangChecked(attempt=check.attempt, links=(link(*names(check), bytes_per_s=1),)))
    assert set(verdicts(here).values()) == {"healthy"}
