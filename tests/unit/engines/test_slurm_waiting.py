"""Slurm's words for waiting in plain ones, and readings that are there when Slurm is not."""

import json
import threading
import time

import pytest

from moulin.domain.errors import EngineUnavailable
from moulin.engines.slurm import watched
from moulin.engines.slurm.formats import NS_PER_S, read_jobs
from moulin.engines.slurm.waiting import meaning, standing_of
from moulin.engines.slurm.watched import Watched

NOW_NS = 1000 * NS_PER_S
PENDING = {"job_id": 7, "name": "a", "submit_time": 900, "start_time": 0}


def some(value):
    return {"set": True, "infinite": False, "number": value}


def standing(reason, description="", start=0, state="PENDING"):
    """Return where a job stands, the same from both forms of squeue."""
    words = {"state_reason": reason, "state_description": description}
    old = {**PENDING, **words, "job_state": state, "start_time": start}
    both = ["RUNNING", state] if state == "CONFIGURING" else [state]
    new = {**old, "job_state": both, "submit_time": some(900), "start_time": some(start)}
    found = [
        standing_of(read_jobs(json.dumps({"jobs": [form]}).encode())[0], "7", NOW_NS)
        for form in (old, new)
    ]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("Resources", "nodes it needs are busy"),
        ("Priority", "other jobs"),
        ("PartitionDown", "out of service"),
        ("PartitionTimeLimit", "more time than its partition"),
        ("ReqNodeNotAvail", "down, drained or reserved"),
        ("BeginTime", "has not come"),
        ("Dependency", "another Slurm job"),
        ("DependencyNeverSatisfied", "it never starts"),
        ("JobHeldAdmin", "an administrator"),
        ("JobHeldUser", "scontrol release"),
        ("JobArrayTaskLimit", "elements"),
        ("Licenses", "licences"),
        ("Reservation", "reservation"),
        ("QOSMaxJobsPerUserLimit", "(QOS) allows no more running jobs for each user"),
        ("QOSMaxCpuPerUserLimit", "(QOS) allows no more CPUs for each user"),
        ("QOSMaxMemoryPerJob", "(QOS) allows no more memory in one job"),
        ("QOSMaxWallDurationPerJobLimit", "(QOS) allows no more time in one job"),
        ("QOSGrpNodeLimit", "(QOS) allows no more nodes for all its jobs together"),
        ("QOSGrpCPUMinutesLimit", "(QOS) allows no more CPU minutes for all"),
        ("QOSMinGRES", "a limit of its quality of service (QOS)"),
        ("QOSUsageThreshold", "a limit of its quality of service (QOS)"),
        ("AssocGrpCpuLimit", "Slurm account allows no more CPUs for all its jobs together"),
        ("AssocGrpGRES", "Slurm account allows no more accelerators"),
        ("AssocMaxJobsLimit", "Slurm account allows no more running jobs"),
        ("AssocGrpBBLimit", "a limit of its Slurm account"),
    ],
)
def test_a_word_is_said_plainly(word, words):
    assert words in meaning(word)


def test_a_word_that_nobody_translated_is_kept_and_not_guessed():
    found = standing("MaxWeirdness")
    assert (found.word, found.meaning) == ("MaxWeirdness", "")


def test_a_job_that_waits_says_since_when_and_for_what():
    found = standing("Resources")
    assert (found.engine, found.job, found.word) == ("Slurm", "7", "Resources")
    assert (found.since_ns, found.expected_ns, found.detail) == (900 * NS_PER_S, 0, "")


@pytest.mark.parametrize(
    ("reason", "description", "word", "detail"),
    [
        (
            "ReqNodeNotAvail",
            "ReqNodeNotAvail, UnavailableNodes:n[1-2]",
            "ReqNodeNotAvail",
            "UnavailableNodes:n[1-2]",
        ),
        ("", "ReqNodeNotAvail, May be reserved", "ReqNodeNotAvail", "May be reserved"),
        ("Resources", "Nodes required are DOWN", "Resources", "Nodes required are DOWN"),
        ("", "Priority", "Priority", ""),
        ("None", "", "None", ""),
    ],
)
def test_what_slurm_adds_is_kept_beside_its_word(reason, description, word, detail):
    found = standing(reason, description)
    assert (found.word, found.detail) == (word, detail)


@pytest.mark.parametrize(
    ("reason", "start", "expected"),
    [
        ("Resources", 1500, 1500),
        ("Priority", 1500, 1500),
        ("BeginTime", 1500, 1500),
        ("Resources", 999, 0),  # what has passed is no estimate
        ("PartitionDown", 1500, 0),  # Slurm keeps what it reckoned before, and means it no more
        ("JobHeldUser", 1500, 0),
    ],
)
def test_an_estimate_is_told_only_where_slurm_still_means_it(reason, start, expected):
    assert standing(reason, start=start).expected_ns == expected * NS_PER_S


def test_a_job_that_runs_waits_for_nothing_and_one_whose_nodes_boot_does():
    assert standing("None", state="RUNNING").word == ""
    assert standing("None", state="CONFIGURING").word == "CONFIGURING"


@pytest.fixture
def slow(monkeypatch):
    """Return a question that hangs until it is let go, and how long anybody waits for it."""
    monkeypatch.setattr(watched, "WAIT_S", 0.2)
    monkeypatch.setattr(watched, "_STALE_S", 0.1)
    return threading.Event()


def test_a_controller_that_hangs_is_waited_for_once(slow):
    slow.set()
    asked = []

    def ask():
        asked.append(1)
        slow.wait(20)
        return len(asked)

    question = Watched(ask, 0.01)
    assert question.peek()[0] is None
    assert question.read().value == 1
    slow.clear()
    time.sleep(0.12)
    begun_s = time.monotonic()
    assert question.read().value is None
    for _ in range(50):
        reading = question.read()
        assert isinstance(reading.failure, EngineUnavailable)
    assert time.monotonic() < begun_s + 0.2 + 1.0  # one wait, not fifty
    assert question.is_silent
    # What it said last is still known, and that it is old.
    answered, failure = question.peek()
    assert answered is not None
    assert answered.value == 1
    assert failure is not None
    assert "has not answered for" in failure.message
    slow.set()
    deadline_s = time.monotonic() + 10
    while question.read().value != len(asked) or question.peek()[1] is not None:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert not question.is_silent


def test_who_only_peeks_asks_nobody(slow):
    question = Watched(lambda: pytest.fail("it was asked"), 0.01)
    answered, failure = question.peek()
    assert answered is None
    assert failure is not None
    assert failure.message == "Slurm has not answered yet"


def test_a_failure_keeps_the_last_answer(slow):
    answers = iter(["one"])

    def ask():
        for answer in answers:
            return answer
        raise EngineUnavailable("refused")

    question = Watched(ask, 0.0)
    while question.peek()[1] is None or question.peek()[0] is None:
        question.read()
        time.sleep(0.01)
    answered, failure = question.peek()
    assert answered is not None
    assert (answered.value, failure.message if failure else "") == ("one", "refused")


def test_a_command_that_fails_only_after_a_while_is_silence_and_one_that_fails_at_once_is_not(
    slow, monkeypatch
):
    monkeypatch.setattr(watched, "SLOW_S", 0.05)
    takes_s = [0.0, 0.1]

    def ask():
        time.sleep(takes_s.pop(0) if takes_s else 0.1)
        raise EngineUnavailable("timed out")

    question = Watched(ask, 0.01)
    assert question.read().failure is not None
    assert not question.is_silent
    deadline_s = time.monotonic() + 10
    while not question.is_silent:
        question.read()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    begun_s = time.monotonic()
    for _ in range(20):
        assert question.read().failure is not None
    assert time.monotonic() < begun_s + 0.1 * 20 / 2  # not a wait for each
