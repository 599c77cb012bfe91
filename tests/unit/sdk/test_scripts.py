"""Scripts of several requests, run by hand: each step is told its answer."""

from typing import Any

import pytest

from moulin.domain.control import FetchStatus, ModelInfo, WorkloadPage
from moulin.domain.errors import DeadlineExceeded, DigestMismatch, NotFound
from moulin.domain.observation import LogChunk
from moulin.domain.views import TaskView, UnitView, WorkloadView
from moulin.domain.workload import TaskTemplate, WorkloadKind, WorkloadSpec
from moulin.sdk import _scripts as scripts
from moulin.sdk._core import Call
from moulin.sdk._scripts import Give, Pause, Script


def view(state: str, number: int = 0, *, is_ready: bool = False) -> WorkloadView:
    task = TaskView(rank=0, step="s", node="n", zone="z", is_ready=is_ready)
    return WorkloadView(
        id=f"job_{number}",
        kind="job",
        name="j",
        organisation="o",
        project="p",
        state=state,
        spec=WorkloadSpec(kind=WorkloadKind.JOB, name="j", task=TaskTemplate(command=("x",))),
        submitted_by="k",
        submitted_at_ns=1,
        units=(UnitView(unit=0, generation=1, state=state, tasks=(task,)),),
    )


def play(script: Script, answers: list[Any]) -> tuple[list[Any], list[str], int]:
    """Run a script against answers; return what it gave, the paths it asked and its pauses."""
    given: list[Any] = []
    asked: list[str] = []
    pauses = 0
    step = next(script)
    while True:
        try:
            match step:
                case Call():
                    asked.append(step.path)
                    answer = answers.pop(0)
                    failed = isinstance(answer, Exception)
                    step = script.throw(answer) if failed else script.send(answer)
                case Pause():
                    pauses += 1
                    step = next(script)
                case Give(value):
                    given.append(value)
                    step = next(script)
        except StopIteration:
            assert not answers
            return given, asked, pauses


def chunk(data: bytes, end: int, *, is_end: bool = False) -> LogChunk:
    return LogChunk(data=data, next_cursor=end, is_end=is_end)


def test_waiting_ends_with_a_final_state():
    given, asked, pauses = play(
        scripts.wait_for_end("job_0", 0.0), [view("admitted"), view("running"), view("failed")]
    )
    assert [each.state for each in given] == ["failed"]
    assert (len(asked), pauses) == (3, 2)


def test_waiting_ends_with_its_time():
    with pytest.raises(DeadlineExceeded, match="it is admitted"):
        play(scripts.wait_for_end("job_0", 1e-9), [view("admitted")])


def test_an_endpoint_is_ready_or_over():
    states = [view("running"), view("running", is_ready=True)]
    assert play(scripts.wait_until_ready("e", 0.0), states)[0][0].state == "running"
    assert play(scripts.wait_until_ready("e", 0.0), [view("failed")])[0][0].state == "failed"


def test_logs_are_followed_from_before_the_start_to_the_end():
    given, asked, pauses = play(
        scripts.follow_logs("job_0", 0, 0),
        [
            NotFound("no task yet"),
            view("admitted"),
            chunk(b"a", 1),
            chunk(b"", 1),
            chunk(b"bc", 3),
            chunk(b"", 3, is_end=True),
        ],
    )
    assert b"".join(given) == b"abc"
    assert (len(asked), pauses) == (6, 2)


def test_logs_of_what_never_started_end_with_it():
    answers = [NotFound("no task"), view("cancelled")]
    assert play(scripts.follow_logs("job_0", 0, 0), answers)[0] == []


def test_logs_of_nothing_are_an_error():
    with pytest.raises(NotFound, match="no workload"):
        play(scripts.follow_logs("job_0", 0, 0), [NotFound("no task"), NotFound("no workload")])


@pytest.mark.parametrize(("limit", "expected"), [(0, 5), (3, 3), (2, 2)])
def test_pages_are_read_as_far_as_wanted(limit, expected):
    pages = [
        WorkloadPage(items=(view("a", 1), view("a", 2)), next="job_2"),
        WorkloadPage(items=(view("a", 3), view("a", 4)), next="job_4"),
        WorkloadPage(items=(view("a", 5),)),
    ]
    if limit:
        pages[1] = WorkloadPage(items=pages[1].items[: limit - 2], next="job_3")
        del pages[1 + (limit > 2) :]
    given, _, _ = play(scripts.every_workload("", "", (), limit), list(pages))
    assert len(given) == expected


def model(status: FetchStatus) -> ModelInfo:
    return ModelInfo(
        name="tiny",
        title="",
        publisher="",
        licence="",
        licence_url="",
        card="",
        parameters=1,
        context_max_tokens=1,
        variants=(),
        fetch=status,
    )


def test_a_fetch_gives_each_look_and_ends_ready():
    looks = [FetchStatus(state="fetching", done_bytes=n) for n in (0, 5)]
    ready = FetchStatus(state="ready")
    given, asked, pauses = play(
        scripts.fetch_model("tiny", "", "any", 0.0), [looks[0], model(looks[1]), model(ready)]
    )
    assert given == [*looks, ready]
    assert asked[0].endswith("/fetch")
    assert pauses == 2


def test_a_failed_fetch_raises_what_failed():
    failed = FetchStatus(state="failed", code="digest_mismatch", message="m", hint="h")
    with pytest.raises(DigestMismatch) as raised:
        play(scripts.fetch_model("tiny", "", "any", 0.0), [failed])
    assert raised.value.hint == "h"
