"""A question that is asked again and again: what failed says so, whatever it failed with."""

import threading
import time

import pytest

from moulin.domain.errors import EngineUnavailable
from moulin.engines.slurm import watched as watched_module
from moulin.engines.slurm.watched import HURRIED_PERIOD_S, Question, Watched


class Asked:
    """An answer, or what is raised instead of it."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.times = 0

    def __call__(self) -> int:
        self.times += 1
        if self.failure is not None:
            raise self.failure
        return self.times


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "failure", [ValueError("a form of a later version"), EngineUnavailable("no answer")]
)
def test_what_raised_anything_is_a_failure_and_not_the_last_answer(failure, caplog):
    asked = Asked()
    watched = Watched(asked, 3600.0)
    assert watched.read().known() == 1
    asked.failure = failure
    for _ in range(3):
        watched.doubt()
        reading = watched.read()
        assert reading.value is None
        with pytest.raises(EngineUnavailable, match=str(failure)):
            reading.known()
    assert asked.times == 4
    assert len(caplog.records) == (0 if isinstance(failure, EngineUnavailable) else 1)
    asked.failure = None
    watched.doubt()
    assert watched.read().known() == 5


@pytest.mark.timeout(30)
def test_many_that_watch_one_question_have_it_asked_once():
    asked = Asked()
    question = Question(asked)
    watching = [Watched(question, 3600.0) for _ in range(8)]
    assert {each.read().known() for each in watching} == {1}
    assert {each.peek()[0] for each in watching} == {question.answered}
    watching[3].doubt()
    assert watching[2].read().known() == 1  # others have no doubts
    assert watching[3].read().known() == 2
    assert {each.read().known() for each in watching} == {2}
    assert asked.times == 2


@pytest.mark.timeout(30)
def test_each_that_watches_gets_answers_as_fresh_as_it_asks():
    asked = Asked()
    question = Question(asked)
    slow, quick = Watched(question, 3600.0), Watched(question, 0.05)
    until_s = time.monotonic() + 1.0
    while time.monotonic() < until_s:
        slow.read()
        assert time.monotonic() - quick.read().asked_s < 0.05 + 0.5
        time.sleep(0.005)
    assert 10 <= asked.times <= 21
    before = asked.times
    for _ in range(100):  # the slow one alone has it asked no more
        slow.read()
    slow.hurry()
    time.sleep(HURRIED_PERIOD_S)
    slow.read()
    slow.doubt()
    assert slow.read().known() == asked.times
    assert asked.times <= before + 3


@pytest.mark.timeout(30)
def test_what_hangs_is_waited_for_once_by_all_that_watch_it(monkeypatch):
    monkeypatch.setattr(watched_module, "WAIT_S", 0.2)
    let_go = threading.Event()
    question = Question(lambda: let_go.wait(20))
    watching = [Watched(question, 0.01) for _ in range(8)]
    begun_s = time.monotonic()
    assert [each.read().value for each in watching] == [None] * 8
    assert time.monotonic() < begun_s + 0.2 + 0.5
    assert all(each.is_silent for each in watching)
    let_go.set()
    deadline_s = time.monotonic() + 10
    while not all(each.read().value for each in watching):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert not any(each.is_silent for each in watching)


def test_what_nobody_reads_is_not_asked_and_keeps_no_thread():
    asked = Asked()
    before = threading.active_count()
    watching = [Watched(Question(asked), 0.001) for _ in range(20)]
    for each in watching:
        assert each.read().value
    time.sleep(0.05)
    assert asked.times == 20
    assert threading.active_count() == before
