"""What engines hold back of placed work, as `explain` puts it: one line a reason, counted, with its age."""

from dataclasses import replace

import pytest

from moulin.domain.ids import StepId, WorkloadId
from moulin.domain.reasons import sentence
from moulin.domain.standing import Standing
from moulin.domain.workload import JobArray
from moulin.scheduler import explain
from tests.unit.scheduler.world import SECOND, World, job, node, world

HELD = Standing(
    engine="Slurm",
    job="12",
    word="Resources",
    meaning="the nodes it needs are busy",
    since_ns=43_200 * SECOND,
    read_at_ns=50_000 * SECOND,
)


@pytest.fixture
def here() -> World:
    return world(node("n1", 64, 64), node("n2", 64, 64))


def placed(here: World, **more: object) -> list[StepId]:
    here.submit("w", replace(job(2, 4), **more))  # type: ignore[arg-type]
    here.cycle()
    return list(here.state.steps)


def said(here: World, standings: dict[StepId, Standing]) -> list[str]:
    reasons = explain(here.state, WorkloadId("w"), here.now_ns, here.policy, standings)
    return [sentence(reason) for reason in reasons]


def test_nothing_said_is_nothing_held(here):
    [step] = placed(here)
    assert said(here, {}) == []
    assert said(here, {step: Standing(engine="Slurm", job="12")}) == []


def test_a_job_that_waits_has_its_number_its_word_and_its_time(here):
    [step] = placed(here)
    assert said(here, {step: HELD}) == [
        (
            "Slurm holds it: job 12 has waited since 1970-01-01 12:00:00Z, now for Resources:"
            " the nodes it needs are busy"
        )
    ]


def test_what_runs_is_held_by_nobody_though_an_old_reading_says_so(here):
    [step] = placed(here)
    here.run(step)
    assert said(here, {step: HELD}) == []


def test_an_estimate_and_more_words_are_told_where_there_are_any(here):
    [step] = placed(here)
    more = replace(HELD, expected_ns=50_400 * SECOND, detail="UnavailableNodes:n4")
    [_, words, expected] = said(here, {step: more})
    assert words == "Slurm says of job 12: UnavailableNodes:n4"
    assert expected.startswith("Slurm expects to start job 12 at 1970-01-01 14:00:00Z")


def test_a_gang_is_one_job(here):
    steps = placed(here, nodes=2)
    assert len(steps) == 2
    [line] = said(here, dict.fromkeys(steps, HELD))
    assert line.startswith("Slurm holds it: job 12 ")


def test_an_array_is_counted_by_reason_the_most_frequent_first(here):
    steps = placed(here, array=JobArray(size=6))
    assert len(steps) == 6
    limit = replace(HELD, word="QOSMaxJobsPerUserLimit", meaning="", since_ns=0, job="7_5")
    standings = {step: replace(HELD, job=f"7_{n}") for n, step in enumerate(steps)}
    standings[steps[5]] = limit
    here.run(steps[0])
    [first, second] = said(here, standings)
    assert first.startswith("Slurm holds 4 of its 5 jobs, such as 7_1, since 1970-01-01 12:00:00Z")
    # A word that nobody has translated is told all the same, and its time is that of the placement.
    assert "Slurm holds 1 of its 5 jobs, such as 7_5" in second
    assert "now for QOSMaxJobsPerUserLimit: Moulin knows no plainer words for it" in second


@pytest.mark.parametrize(
    ("read_at_ns", "when"), [(50_000 * SECOND, "1970-01-01 13:53:20Z"), (0, "never")]
)
def test_a_reading_that_is_out_of_date_says_so_once(here, read_at_ns, when):
    steps = placed(here, array=JobArray(size=3))
    away = replace(HELD, word="", read_at_ns=read_at_ns, failure="Slurm has not answered for 9 s")
    assert said(here, dict.fromkeys(steps, away)) == [
        (
            f"what Slurm says of 3 job(s) could not be read again (last read: {when}):"
            " Slurm has not answered for 9 s"
        )
    ]


def test_a_job_that_its_engine_ends_before_its_own_limit_says_so(here):
    [step] = placed(here)
    here.run(step)
    [attempt] = here.state.attempts.values()
    own_ns = attempt.limit_ends_ns
    runs = Standing(engine="Slurm", job="12", wall_ns=own_ns + 130 * SECOND)
    assert said(here, {step: runs}) == []
    [words] = said(here, {step: replace(runs, wall_ns=own_ns - 600 * SECOND)})
    assert words.startswith("Slurm ends job 12 at 1970-01-01")
    assert "sooner than its own time limit would at" in words
