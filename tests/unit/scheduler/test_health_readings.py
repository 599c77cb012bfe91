"""Readings of every source: partial ones, an engine's own word, devices that are lost, memory gone."""

from dataclasses import replace

import pytest

from moulin.domain.health import DeviceReading, NodeReading, Signal, Verdict
from moulin.domain.ids import NodeId
from moulin.domain.node_events import NodeHealthObserved, NodeJudged
from moulin.domain.plan import StopCause
from moulin.domain.reasons import Reason, ReasonCode
from moulin.scheduler import node_views
from moulin.scheduler.health import HealthRow, clears, is_news, observe_health, symptoms_of
from tests.unit.scheduler.world import SECOND, World, job, node, world

N0 = NodeId("n0")
SILENT = NodeReading(node=N0, at_ns=0, is_partial=True)


def device(index: int = 0, **more: object) -> DeviceReading:
    return replace(DeviceReading(index=index, uuid=f"GPU-{index}"), **more)  # type: ignore[arg-type]


def partial(*devices: DeviceReading, **more: object) -> NodeReading:
    return replace(SILENT, devices=devices or None, **more)  # type: ignore[arg-type]


def known(*readings: NodeReading) -> HealthRow:
    row = HealthRow()
    for found in readings:
        if is_news(row, found):
            observe_health(row, found, 1)
    return row


def names(row: HealthRow, found: NodeReading) -> list[tuple[str, int, bool]]:
    return [
        (each.signal.value, each.device, each.is_evidence)
        for each in symptoms_of(row.reading, found)
    ]


def see(here: World, found: NodeReading) -> None:
    row = here.state.nodes.row(found.node)
    assert row is not None
    if is_news(row.health, found):
        symptoms = symptoms_of(row.health.reading, found)
        here.add(NodeHealthObserved(node=found.node, reading=found, symptoms=symptoms))


def test_a_reading_that_says_nothing_is_no_event_until_it_ends_one():
    row = HealthRow()
    assert not is_news(row, SILENT)
    assert is_news(row, replace(SILENT, down_because="no power"))
    observe_health(row, replace(SILENT, down_because="no power"), 1)
    assert not is_news(row, replace(SILENT, down_because="still none"))
    assert is_news(row, SILENT)


def test_what_a_partial_reading_does_not_name_is_not_missed():
    row = known(partial(device(0), device(1)))
    assert names(row, partial(device(0))) == []
    assert names(row, SILENT) == []
    assert names(row, replace(partial(device(0)), is_partial=False)) == [
        ("device_missing", 1, True)
    ]
    assert names(row, partial(device(0), device(1, is_lost=True))) == [("device_missing", 1, True)]


def test_xids_of_another_reader_are_all_new():
    row = known(partial(device(xids={"79": 1}, xids_since_ns=5)))
    assert names(row, partial(device(xids={"79": 1}, xids_since_ns=5))) == []
    assert names(row, partial(device(xids={"79": 1}, xids_since_ns=9))) == [("xid", 0, True)]
    assert names(row, partial(device(xids={}, xids_since_ns=9))) == []


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [(-1, 100, []), (100, -1, []), (1600, 1500, []), (1600, 1499, [("memory_missing", -1, False)])],
)
def test_memory_that_is_gone_is_missed(before, now, expected):
    row = known(partial(device(), memory_bytes=before))
    assert names(row, partial(device(), memory_bytes=now)) == expected


def test_memory_counts_from_when_it_was_first_read():
    row = known(partial(device()), partial(device(), memory_bytes=1600), SILENT)
    assert names(row, partial(device(), memory_bytes=800)) == [("memory_missing", -1, False)]


def test_a_node_that_its_engine_calls_down_loses_its_work_at_once_also_when_it_is_away():
    here = world(node("n0"), node("n1"))
    here.submit("x", job(3))
    [place] = here.cycle().places
    name = place.tasks[0].node
    here.run(f"{place.attempt}.t0")
    see(here, replace(SILENT, node=name, down_because="Slurm says down: no power"))
    plan = here.cycle()
    assert [(each.node, each.verdict) for each in plan.judgements] == [(name, Verdict.QUARANTINED)]
    assert plan.judgements[0].reason.parameters["value"] == "Slurm says down: no power"
    [stop] = here.cycle().stops
    assert stop.cause is StopCause.UNHEALTHY
    here.gone(f"{place.attempt}.t0")
    here.cycle()
    [again] = here.cycle().places
    assert again.tasks[0].node != name


def test_what_an_engine_complains_of_makes_suspect_and_lasting_quarantine():
    here = world(node("n0"))
    see(here, replace(SILENT, complaints=("DiskPressure: full", "GpuUnhealthy")))
    [judged] = here.cycle().judgements
    assert judged.verdict is Verdict.SUSPECT
    assert judged.reason.parameters["value"] == "DiskPressure: full; GpuUnhealthy"
    here.now_ns += 61 * SECOND
    assert [each.verdict for each in here.cycle().judgements] == [Verdict.QUARANTINED]


def test_a_device_is_cleared_only_by_a_reading_of_it():
    row = known(partial(device(1)), partial(device(1, is_remap_failed=True)), SILENT)
    assert row.evidence
    assert not clears(row, SILENT)
    assert not clears(row, partial(device(0)))
    assert not clears(row, partial(device(1, is_lost=True)))
    assert clears(row, partial(device(1)))
    assert clears(known(replace(SILENT, down_because="x"), SILENT), SILENT)


def test_a_person_vouches_for_a_node_and_views_say_what_is_known():
    here = world(node("n0", closed_because="drain: fan", taken_cpu_milli=500))
    see(here, replace(SILENT, down_because="no power"))
    here.cycle()
    [view] = node_views(here.state)
    assert [each.signal for each in view.evidence] == [Signal.NODE_DOWN]
    assert (view.closed_because, view.taken_cpu_milli) == ("drain: fan", 500)
    reason = Reason(code=ReasonCode.NODE_SAID)
    here.add(NodeJudged(node=N0, verdict=Verdict.HEALTHY, reason=reason, by="ada"))
    assert node_views(here.state)[0].evidence == ()
