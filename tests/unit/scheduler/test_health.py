"""Readings become symptoms, symptoms verdicts, verdicts keep work away; nothing flaps."""

from dataclasses import replace

import pytest

from moulin.domain.events import NodeJoined, NodeLeft, NodeReachabilityChanged
from moulin.domain.health import DeviceReading, NodeReading, Symptom, Verdict
from moulin.domain.ids import NodeId, WorkloadId
from moulin.domain.node_events import NodeChecked, NodeHealthObserved, NodeJudged
from moulin.domain.plan import StopCause
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.workload import JobArray, WorkloadKind
from moulin.scheduler import explain, node_views
from moulin.scheduler.health import is_news, needs_check, symptoms_of
from tests.unit.scheduler.world import SECOND, World, job, node, world

N0 = NodeId("n0")


def device(index: int = 0, **more: object) -> DeviceReading:
    return replace(DeviceReading(index=index, uuid=f"GPU-{index}"), **more)  # type: ignore[arg-type]


def reading(*devices: DeviceReading, name: str = "n0", **more: object) -> NodeReading:
    found = NodeReading(node=NodeId(name), at_ns=0, devices=devices or (device(0), device(1)))
    return replace(found, **more)  # type: ignore[arg-type]


def see(here: World, found: NodeReading) -> tuple[Symptom, ...]:
    """Report a reading as the control plane does: as an event only when it is news."""
    row = here.state.nodes.row(found.node)
    assert row is not None
    if not is_news(row.health, found):
        return row.health.symptoms
    symptoms = symptoms_of(row.health.reading, found)
    here.add(NodeHealthObserved(node=found.node, reading=found, symptoms=symptoms))
    return symptoms


def check(here: World, *, is_passed: bool = True) -> None:
    here.add(NodeChecked(node=N0, is_passed=is_passed, by="moulin"))


def verdict(here: World, name: str = "n0") -> str:
    return next(view.health.value for view in node_views(here.state) if view.node == name)


def gpus() -> World:
    """Two nodes of two devices each, read once."""
    here = world(node("n0", devices=2), node("n1", devices=2))
    see(here, reading())
    see(here, reading(name="n1"))
    return here


def names(symptoms: tuple[Symptom, ...]) -> list[tuple[str, int, int]]:
    return [(each.signal.value, each.device, each.value) for each in symptoms]


# -- readings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "symptoms"),
    [
        ({"ecc_uncorrected": 5}, {"ecc_uncorrected": 5}, []),
        ({"ecc_uncorrected": 5}, {"ecc_uncorrected": 7}, [("ecc_uncorrected", 0, 2)]),
        # A counter that wrapped or was reset: what it counts now is new.
        ({"ecc_uncorrected": 2**64 - 1}, {"ecc_uncorrected": 3}, [("ecc_uncorrected", 0, 3)]),
        ({"ecc_uncorrected": 9}, {"ecc_uncorrected": 0}, []),
        # A gap: nobody knows how far it counted meanwhile.
        ({"ecc_uncorrected": 9}, {"ecc_uncorrected": -1}, []),
        ({"ecc_uncorrected": -1}, {"ecc_uncorrected": 9}, []),
        ({"xids": {}}, {"xids": {"79": 1}}, [("xid", 0, 79)]),
        ({"xids": {"79": 1}}, {"xids": {"79": 1}}, []),
        ({"xids": {"79": 4}}, {"xids": {"79": 1}}, [("xid", 0, 79)]),
        # A program's own bad address is not the device's fault.
        ({"xids": {}}, {"xids": {"13": 3, "31": 1}}, []),
        ({}, {"is_remap_pending": True}, [("row_remap_pending", 0, 0)]),
        ({}, {"is_remap_failed": True}, [("row_remap_failed", 0, 0)]),
        ({}, {"is_hot": True, "is_braked": True}, [("power_brake", 0, 0), ("thermal", 0, 0)]),
        ({}, {"links_down": 2}, [("nvlink_down", 0, 2)]),
        # Under MIG much cannot be read: that is no symptom.
        ({}, {"is_hot": None, "links_down": -1, "ecc_uncorrected": -1}, []),
    ],
)
def test_what_a_device_shows(before, now, symptoms):
    first, second = (reading(device(0, **values)) for values in (before, now))
    assert names(symptoms_of(first, second)) == symptoms


def test_a_first_reading_is_the_base_of_the_next():
    old = reading(device(0, ecc_uncorrected=7, xids={"79": 3}), memory_errors=4)
    assert symptoms_of(None, old) == ()


def test_a_device_that_is_gone_is_missed_and_one_that_cannot_be_asked_is_not():
    both, one = reading(device(0), device(1)), reading(device(1))
    assert names(symptoms_of(both, one)) == [("device_missing", 0, 0)]
    assert symptoms_of(both, reading(devices=None)) == ()


@pytest.mark.parametrize(
    ("more", "symptoms"),
    [
        ({"disk_free_bytes": 10}, [("disk_full", -1, 10)]),
        ({"disk_free_bytes": -1}, []),
        ({"clock_skew_ns": -2 * SECOND}, [("clock_skew", -1, -2 * SECOND)]),
        ({"clock_skew_ns": SECOND // 2}, []),
        ({"memory_errors": 2}, [("memory_uncorrected", -1, 2)]),
    ],
)
def test_what_a_machine_shows(more, symptoms):
    assert names(
        symptoms_of(reading(memory_errors=0), reading(**{"memory_errors": 0, **more}))
    ) == (symptoms)


def test_a_steady_node_writes_nothing():
    here = gpus()
    before = len(here.log)
    for temperature in range(3):
        here.now_ns += SECOND
        see(here, reading(disk_free_bytes=2**40 + temperature))
    assert len(here.log) == before
    see(here, reading(device(0), device(1), device(2)))
    assert len(here.log) == before + 1  # one device more, which would be missed from now on
    see(here, reading(device(0)))
    row = here.state.nodes.row(N0)
    assert row is not None
    assert names(row.health.symptoms) == [
        ("device_missing", 1, 0),
        ("device_missing", 2, 0),
    ]
    before = len(here.log)
    see(here, reading(device(0)))
    assert len(here.log) == before


# -- verdicts -------------------------------------------------------------------------------------


def test_evidence_is_a_quarantine_at_once_and_what_holds_the_device_starts_elsewhere():
    here = gpus()
    here.submit("x", job(1, devices=1))
    here.submit("y", job(1, devices=1))
    here.submit("z", job(1))
    for place in here.cycle().places:
        here.run(f"{place.attempt}.t0")
    held = {str(task.attempt): (task.node, task.devices) for task in here.state.steps.values()}
    assert held["x.u0.g1"][0] == held["y.u0.g1"][0] == "n0"
    struck = held["x.u0.g1"][1][0]
    see(here, reading(device(struck, xids={"79": 1}), device(1 - struck)))
    plan = here.cycle()
    assert [(each.node, each.verdict) for each in plan.judgements] == [("n0", Verdict.QUARANTINED)]
    assert [(each.attempt, each.cause) for each in here.cycle().stops] == [
        ("x.u0.g1", StopCause.UNHEALTHY)
    ]
    here.exit("x.u0.g1.t0", 143)
    here.cycle()
    [place] = here.cycle().places
    assert (place.attempt, place.tasks[0].node) == ("x.u0.g2", "n1")
    row = here.state.workloads[WorkloadId("x")]
    assert row.units[0].failures == 0
    assert row.reasons[0].code is ReasonCode.NODE_SYMPTOM
    assert "y.u0.g1.t0" in here.state.steps
    assert "z.u0.g1.t0" in here.state.steps


def test_nothing_is_placed_where_the_same_decision_says_quarantine():
    here = world(node("n0", devices=2))
    see(here, reading())
    see(here, reading(device(0, ecc_uncorrected=-1), device(1, xids={"48": 1})))
    here.submit("x", job(1))
    plan = here.cycle()
    assert plan.places == ()
    assert plan.judgements[0].verdict is Verdict.QUARANTINED
    assert here.placed() == []
    codes = [each.code.value for each in explain(here.state, WorkloadId("x"), 0, here.policy)]
    assert codes == ["InsufficientCapacity", "NodeQuarantined"]


def test_what_fails_by_itself_on_a_broken_device_was_lost_with_it():
    here = gpus()
    here.submit("x", job(1, devices=2))
    here.cycle()
    here.run("x.u0.g1.t0")
    see(here, reading(device(0, ecc_uncorrected=-1), device(1, xids={"95": 1})))
    here.exit("x.u0.g1.t0", 1)
    here.cycle()
    here.now_ns += 2 * SECOND
    assert [place.attempt for place in here.cycle().places] == ["x.u0.g2"]


def test_a_gang_is_restarted_whole_with_a_spare():
    here = world(*(node(f"n{i}", cpus=1, devices=1) for i in range(3)))
    for name in ("n0", "n1", "n2"):
        see(here, reading(device(0), name=name))
    here.submit("x", job(1, devices=1, nodes=2))
    [place] = here.cycle().places
    for task in place.tasks:
        here.run(f"x.u0.g1.t{task.rank}")
    see(here, reading(device(0, is_remap_failed=True), name=place.tasks[1].node))
    here.cycle()
    assert [stop.attempt for stop in here.cycle().stops] == ["x.u0.g1"]
    for rank in (0, 1):
        here.exit(f"x.u0.g1.t{rank}", 143)
    here.cycle()
    [again] = here.cycle().places
    nodes = {task.node for task in again.tasks}
    assert place.tasks[1].node not in nodes
    assert len(nodes) == 2


def test_an_unreachable_node_keeps_its_verdict_and_its_work():
    here = gpus()
    here.submit("x", job(1, devices=2))
    here.cycle()
    here.run("x.u0.g1.t0")
    here.add(NodeReachabilityChanged(node=N0, is_reachable=False))
    here.now_ns += 600 * SECOND
    plan = here.cycle()
    assert (plan.judgements, plan.stops) == ((), ())
    assert verdict(here) == "healthy"


def test_what_may_pass_makes_suspect_first_and_quarantine_when_it_lasts():
    here = gpus()
    hot = reading(device(0, is_hot=True), device(1))
    see(here, hot)
    here.cycle()
    assert verdict(here) == "suspect"
    here.submit("x", job(1))
    assert here.placed() == ["x"]
    here.now_ns += here.policy.suspect_s * SECOND
    here.cycle()
    assert verdict(here) == "quarantined"
    assert here.cycle().stops == ()  # heat is no evidence: what runs goes on


def test_a_suspect_node_is_well_again_only_after_a_calm():
    here = gpus()
    see(here, reading(device(0, is_hot=True), device(1)))
    here.cycle()
    here.now_ns += 10 * SECOND
    see(here, reading())
    here.now_ns += (here.policy.calm_s - 1) * SECOND
    here.cycle()
    assert verdict(here) == "suspect"
    here.now_ns += SECOND
    here.cycle()
    assert verdict(here) == "healthy"
    assert not here.state.ailing


def test_a_node_that_blinks_changes_its_verdict_once():
    here = gpus()
    for step in range(600):
        here.now_ns += SECOND
        see(here, reading(device(0, is_braked=step % 2 == 0), device(1)))
        here.cycle()
    said = [each.payload for each in here.log if isinstance(each.payload, NodeJudged)]
    assert [each.verdict for each in said] == [Verdict.SUSPECT]


def broken() -> World:
    here = gpus()
    see(here, reading(device(0, xids={"79": 1}), device(1)))
    here.cycle()
    see(here, reading(device(0, xids={"79": 1}), device(1)))
    return here


def test_a_node_returns_after_a_calm_and_a_passed_check_and_not_before():
    here = broken()
    row = here.state.nodes.row(N0)
    assert row is not None
    here.now_ns += (here.policy.calm_s - 1) * SECOND
    assert not needs_check(row.health, here.now_ns, here.policy)
    here.now_ns += 2 * SECOND
    assert needs_check(row.health, here.now_ns, here.policy)
    here.cycle()
    assert verdict(here) == "quarantined"
    check(here, is_passed=False)
    here.cycle()
    assert verdict(here) == "quarantined"
    here.now_ns += SECOND
    check(here)
    here.cycle()
    assert verdict(here) == "healthy"
    assert not here.state.ailing


def test_each_quarantine_in_a_row_takes_twice_as_long():
    here = broken()
    waits = []
    for round_ in range(3):
        begun = here.now_ns
        row = here.state.nodes.row(N0)
        assert row is not None
        while not needs_check(row.health, here.now_ns, here.policy):
            here.now_ns += 50 * SECOND
        waits.append((here.now_ns - begun) // SECOND)
        check(here)
        here.now_ns += SECOND
        check(here)
        here.cycle()
        assert verdict(here) == "healthy"
        see(here, reading(device(0, xids={"79": round_ + 2}), device(1)))
        here.cycle()
        see(here, reading(device(0, xids={"79": round_ + 2}), device(1)))
    assert waits == [300, 600, 1200]


def test_what_a_person_said_only_a_person_takes_back():
    here = gpus()
    said = Reason(code=ReasonCode.NODE_SAID, parameters={"actor": "ada", "words": "loud fan"})
    here.add(NodeJudged(node=N0, verdict=Verdict.QUARANTINED, reason=said, by="ada"))
    here.now_ns += 10**6 * SECOND
    check(here)
    here.cycle()
    assert verdict(here) == "quarantined"
    here.add(NodeJudged(node=N0, verdict=Verdict.HEALTHY, reason=said, by="ada"))
    here.submit("x", job(1, devices=2, array=JobArray(size=2)))
    assert {place.tasks[0].node for place in here.cycle().places} == {"n0", "n1"}


def test_a_node_that_leaves_and_comes_back_is_not_well_for_that():
    here = broken()
    here.add(NodeLeft(node=N0))
    assert here.state.nodes.row(N0) is None
    here.cycle()
    here.add(NodeJoined(pool="pa", capacity=node("n0", devices=2)))
    assert verdict(here) == "quarantined"
    here.submit("x", job(1, devices=2))
    [place] = here.cycle().places
    assert place.tasks[0].node == "n1"


def test_a_lease_of_a_node_without_devices_is_struck_by_what_is_wrong_with_all_of_it():
    here = world(node("n0"), node("n1"))
    see(here, reading(devices=None, memory_errors=0))
    here.submit("x", job(1, kind=WorkloadKind.LEASE, time_limit_s=1000))
    [place] = here.cycle().places
    assert place.tasks[0].node == "n0"
    here.run("x.u0.g1.t0")
    see(here, reading(devices=None, memory_errors=1))
    here.cycle()
    assert [stop.cause for stop in here.cycle().stops] == [StopCause.UNHEALTHY]
