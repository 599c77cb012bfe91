"""Batch work through the whole control plane: arrays, what waits, steering, and ends that are told."""

from dataclasses import replace
from typing import Any

import pytest

from moulin.controlplane.commands import (
    AdjustWorkload,
    ExplainWorkload,
    ReadElements,
    SettleAlert,
    StopElements,
    StopWorkloads,
    TryWorkload,
)
from moulin.controlplane.telling import tell_ends_again
from moulin.domain.control import AdjustWanted, StopWanted
from moulin.domain.errors import Conflict, InvalidRequest, NotFound, Refused
from moulin.domain.events import WorkloadSubmitted
from moulin.domain.factory import Project
from moulin.domain.gateway_events import AlertSettled
from moulin.domain.ids import ProjectId, WorkloadId
from moulin.domain.notices import Notice, WorkloadNotice
from moulin.domain.workload import (
    After,
    AfterWhen,
    JobArray,
    Resources,
    TaskTemplate,
    WorkloadState,
)
from moulin.engines.simulated.world import EXIT_VARIABLE
from tests.integration.controlplane.bench import ADMIN, EURO, Bench, endpoint, factory, job

HOOK = "http://127.0.0.1:1/hook"


def sweep(size: int, at_most: int = 0, **more: Any):
    return replace(job(5), array=JobArray(size=size, at_most=at_most), **more)


def failing(spec):
    env = {**spec.task.env, EXIT_VARIABLE: "3"}
    return replace(spec, task=TaskTemplate(command=spec.task.command, env=env))


def adjust(mill: Bench, workload: str, **more: Any):
    return mill.tell(
        AdjustWorkload(principal=ADMIN, workload=WorkloadId(workload), wanted=AdjustWanted(**more))
    )


def steps_of(mill: Bench, workload: str):
    return {asked.step: asked for asked in mill.floor.asked if asked.workload == workload}


def test_an_array_is_one_submission_one_hold_and_as_many_tasks(mill: Bench) -> None:
    view = mill.submit(sweep(6, time_limit_s=360))
    assert len(mill.events(WorkloadSubmitted)) == 1
    single = mill.submit(replace(job(5), time_limit_s=360))
    assert view.reserved_neur == 6 * single.reserved_neur
    mill.turns(40, 1.0)
    row = mill.row(view.id)
    assert (row.state, dict(row.counts)) == ("succeeded", {"succeeded": 6})
    asked = steps_of(mill, view.id)
    assert len(asked) == 6
    assert {each.env["MOULIN_ARRAY_INDEX"] for each in asked.values()} == set("012345")
    assert row.spent_neur == sum(
        receipt.charge.amount_neur for receipt in mill.store.receipts(workload=view.id)
    )
    assert mill.money().held_neur == 0


def test_a_restart_loses_no_element_and_doubles_none(mill: Bench) -> None:
    view = mill.submit(sweep(9, at_most=3))
    for _ in range(12):
        mill.turns(2, 1.0)
        mill.reopen()
    mill.turns(40, 1.0)
    assert dict(mill.row(view.id).counts) == {"succeeded": 9}
    assert len(mill.floor.world.history) == 9


def test_elements_are_read_and_stopped_by_index(mill: Bench) -> None:
    spec = replace(sweep(1), array=JobArray(size=3, first=10, step=10))
    view = mill.submit(spec)
    mill.turns(2, 1.0)
    command = StopElements(principal=ADMIN, workload=WorkloadId(view.id), indices=(20,))
    mill.tell(command)
    mill.turns(3, 1.0)
    page = mill.tell(ReadElements(workload=WorkloadId(view.id), indices=(20,)))
    assert [(unit.index, unit.state) for unit in page.items] == [(20, "cancelled")]
    mill.turns(20, 1.0)
    assert mill.state(view.id) == "cancelled"
    assert dict(mill.row(view.id).counts) == {"cancelled": 1, "succeeded": 2}
    with pytest.raises(Conflict, match="cancelled"):
        mill.tell(command)


@pytest.mark.parametrize("indices", [(5,), (0, 99)])
def test_an_element_that_is_none_is_a_conflict(mill: Bench, indices) -> None:
    view = mill.submit(sweep(2))
    with pytest.raises(Conflict, match="none of these"):
        mill.tell(StopElements(principal=ADMIN, workload=WorkloadId(view.id), indices=indices))


def test_what_is_no_array_has_no_elements_to_stop(mill: Bench) -> None:
    view = mill.submit(job(5))
    with pytest.raises(Conflict, match="no array"):
        mill.tell(StopElements(principal=ADMIN, workload=WorkloadId(view.id), indices=(0,)))


# -- what comes first -----------------------------------------------------------------------------


def test_a_name_means_the_newest_and_is_waited_for(mill: Bench) -> None:
    first = mill.submit(replace(job(5), name="prepare"))
    second = mill.submit(replace(job(5), after=(After(workload="prepare"),)))
    assert second.spec.after == (After(workload=first.id),)
    explained = mill.tell(ExplainWorkload(workload=WorkloadId(second.id)))
    assert [reason.code for reason in explained.reasons] == ["WaitsFor"]
    mill.turns(8, 1.0)
    assert mill.row(second.id).started_at_ns >= mill.row(first.id).ended_at_ns > 0
    mill.turns(8, 1.0)
    assert mill.state(second.id) == "succeeded"


def test_what_cannot_exist_or_succeed_is_refused(mill: Bench) -> None:
    served = mill.submit(endpoint())
    broken = mill.submit(failing(job(1)))
    mill.turns(5, 1.0)
    for word, code in (
        ("nothing-like-it", "DependencyUnknown"),
        (served.id, "DependencyNeverOk"),
        (broken.id, "DependencyFailed"),
    ):
        with pytest.raises(Refused) as caught:
            mill.submit(replace(job(1), after=(After(workload=word),)))
        reasons: Any = caught.value.details["reasons"]
        assert reasons[0]["code"] == code
    after = (After(workload=broken.id, when=AfterWhen.ANY),)
    mill.turns(1, 1.0)
    view = mill.submit(replace(job(1), after=after))
    mill.turns(5, 1.0)
    assert mill.state(view.id) == "succeeded"


def test_a_dependency_fails_with_its_dependents(mill: Bench) -> None:
    first = mill.submit(failing(job(2)))
    second = mill.submit(replace(job(2), after=(After(workload=first.id),)))
    mill.turns(8, 1.0)
    row = mill.row(second.id)
    assert (row.state, row.reasons[0].code) == ("cancelled", "DependencyFailed")
    assert not steps_of(mill, second.id)


def test_another_projects_work_cannot_be_waited_for(mill: Bench) -> None:
    mill.apply(*factory(), Project(name="other", organisation="lab"))
    theirs = mill.submit(job(5), project="other")
    with pytest.raises(Refused, match="never had"):
        mill.submit(replace(job(1), after=(After(workload=theirs.id),)))


def test_what_only_the_store_remembers_counts_as_ended(mill: Bench) -> None:
    first = mill.submit(job(1))
    mill.turns(5, 1.0)
    del mill.plane.books.schedule.workloads[WorkloadId(first.id)]
    view = mill.submit(replace(job(1), after=(After(workload=first.id),)))
    assert mill.events(WorkloadSubmitted)[-1].met == (first.id,)
    mill.turns(5, 1.0)
    assert mill.state(view.id) == "succeeded"


# -- steering -------------------------------------------------------------------------------------


def test_hold_release_and_priority(mill: Bench) -> None:
    view = mill.submit(replace(job(2), is_held=True))
    mill.turns(5, 1.0)
    assert (mill.state(view.id), view.is_held, view.eligible_at_ns) == ("admitted", True, 0)
    assert adjust(mill, view.id, priority=90).spec.priority == 90
    released = adjust(mill, view.id, is_held=False)
    assert released.eligible_at_ns > released.submitted_at_ns
    before = len(mill.log())
    adjust(mill, view.id, is_held=False)
    assert not [e for e in mill.log()[before:] if e.kind == "workload.adjusted"]
    mill.turns(6, 1.0)
    assert mill.state(view.id) == "succeeded"
    with pytest.raises(Conflict, match="succeeded"):
        adjust(mill, view.id, is_held=True)
    with pytest.raises(NotFound):
        adjust(mill, "job_nothing", is_held=True)


def test_a_priority_out_of_range_is_refused(mill: Bench) -> None:
    view = mill.submit(replace(job(2), is_held=True))
    with pytest.raises(InvalidRequest):
        adjust(mill, view.id, priority=101)


def test_many_are_stopped_by_label_and_state_after_a_count(mill: Bench) -> None:
    labels = {"team": "x"}
    held = [mill.submit(replace(job(50), labels=labels, is_held=True)) for _ in range(3)]
    other = mill.submit(replace(job(50), labels={"team": "y"}, is_held=True))
    running = mill.submit(replace(job(50), labels=labels))
    mill.turns(2, 1.0)
    wanted = StopWanted(labels=labels, states=(WorkloadState.ADMITTED,), is_dry_run=True)
    command = StopWorkloads(principal=ADMIN, project=ProjectId("atelier"), wanted=wanted)
    assert mill.tell(command).workloads == tuple(view.id for view in held)
    assert all(mill.state(view.id) == "admitted" for view in held)
    command = replace(command, wanted=replace(wanted, is_dry_run=False))
    assert len(mill.tell(command).workloads) == 3
    mill.turns(2, 1.0)
    assert {mill.state(view.id) for view in held} == {"cancelled"}
    assert (mill.state(other.id), mill.state(running.id)) == ("admitted", "running")
    assert mill.tell(command).workloads == ()


def test_nobody_stops_everything_by_mistake(mill: Bench) -> None:
    command = StopWorkloads(principal=ADMIN, project=ProjectId("atelier"), wanted=StopWanted())
    with pytest.raises(InvalidRequest):
        mill.tell(command)


# -- alternatives ---------------------------------------------------------------------------------


def test_the_dearest_alternative_is_held_and_the_one_that_ran_is_charged(mill: Bench) -> None:
    dear = Resources(cpu_milli=4000, memory_bytes=10**9)
    cheap = replace(job(36, time_limit_s=360), alternatives=(dear,))
    plain = mill.submit(replace(cheap, alternatives=()))
    view = mill.submit(cheap)
    assert view.reserved_neur > plain.reserved_neur
    mill.turns(60, 1.0)
    assert mill.row(view.id).units[0].choice == 0
    assert mill.row(view.id).spent_neur <= plain.reserved_neur
    assert mill.available() == 100 * EURO - mill.money().spent_neur


def test_a_trial_of_what_would_wait_says_so(mill: Bench) -> None:
    command = TryWorkload(
        principal=ADMIN, project=ProjectId("atelier"), spec=replace(job(1), is_held=True)
    )
    found = mill.tell(command)
    assert (found.is_possible, [reason.code for reason in found.reasons]) == (True, ["Held"])


# -- ends that are told ---------------------------------------------------------------------------


def test_an_end_is_told_once_and_again_after_a_restart(mill: Bench) -> None:
    hooked = [
        replace(each, webhook=HOOK) if isinstance(each, Project) else each for each in factory()
    ]
    mill.apply(*hooked)
    told: list[Notice] = []
    mill.plane.ports = replace(mill.plane.ports, notify=told.append)
    view = mill.submit(replace(failing(job(1)), is_notified=True, labels={"team": "x"}))
    mill.submit(job(1))
    mill.turns(6, 1.0)
    [notice] = told
    assert isinstance(notice, WorkloadNotice)
    assert (notice.workload, notice.state, notice.url) == (view.id, "failed", HOOK)
    assert notice.reason is not None
    assert (notice.reason.code, dict(notice.labels)) == ("ProgramFailed", {"team": "x"})
    assert 0 < notice.started_at_ns < notice.ended_at_ns

    mill.reopen()
    mill.plane.ports = replace(mill.plane.ports, notify=told.append)
    tell_ends_again(mill.plane)
    assert told == [notice, notice]
    mill.tell(SettleAlert(alert=notice.id, is_delivered=True, attempts=1))
    tell_ends_again(mill.plane)
    assert len(told) == 2
    assert len(mill.events(AlertSettled)) == 1


def test_where_nobody_would_be_told_the_wish_is_refused(mill: Bench) -> None:
    with pytest.raises(Refused, match="no webhook"):
        mill.submit(replace(job(1), is_notified=True))
