"""What becomes of a task that left no record: what Slurm says counts, and signs of life count more."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from moulin.domain.ids import AttemptId, StepId
from moulin.domain.observation import TaskPhase
from moulin.engines.slurm import evidence
from moulin.engines.slurm.attempt import Attempt
from moulin.engines.slurm.client import SlurmClient
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.evidence import Case, Evidence
from moulin.engines.slurm.formats import JobBook, SlurmJob
from moulin.engines.slurm.readings import Readings
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.watched import Reading
from moulin.engines.task.shim import BEGUN_BEFORE
from moulin.engines.task.spool import read_record, step_files

ATTEMPT = AttemptId("job_1.u0.g1")
STEP = StepId(f"{ATTEMPT}.t0")
JOB = SlurmJob(id=7, name=ATTEMPT, state="RUNNING", nodes="node-1")


class NoAccounting:
    """A driver of a cluster that remembers nothing."""

    def recall(self, _jobs: object) -> None:
        return None

    def __getattr__(self, name: str) -> object:
        return lambda *_: pytest.fail(f"{name} was asked")


class Bench:
    """One submitted step, its files, and what Slurm says."""

    def __init__(self, folder: Path) -> None:
        self.files = step_files(folder, STEP)
        Path(self.files.directory).mkdir(parents=True)
        Path(self.files.spec).touch()
        self.attempt = Attempt(
            id=ATTEMPT, directory=self.files.attempt_directory, own_job="7", is_submitted=True
        )
        settings = SlurmSettings(directory=folder, machine_class="here")
        cluster = Cluster(
            Readings(cast("SlurmClient", NoAccounting())), settings, own_comment="moulin:me:"
        )
        self.evidence = Evidence(cluster)
        self.number = 0

    def begin(self) -> None:
        """Let a shim have taken the step."""
        Path(self.files.started).write_text("by shim\nat_ns 5\n")
        self.write()

    def write(self) -> None:
        """Let the shim show that it lives."""
        self.number += 1
        Path(self.files.usage).write_text("1 1 1 1\n")
        os.utime(self.files.usage, ns=(self.number, self.number))

    def look(self, *jobs: SlurmJob):
        """Return what is concluded from one more reading."""
        self.number += 1
        case = Case(STEP, self.attempt, self.files, 1000)
        return self.evidence.observe(case, Reading(self.number, 1.0, JobBook(jobs)))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RECORD_S", 0.0)
    return Bench(tmp_path)


def ended(state: str, **more: Any) -> SlurmJob:
    return replace(JOB, state=state, **more)


@pytest.mark.parametrize(
    ("job", "phase", "code"),
    [
        (ended("COMPLETED"), TaskPhase.EXITED, 0),
        (ended("FAILED", exit_code=3), TaskPhase.EXITED, 3),
        (ended("FAILED", signal=9), TaskPhase.EXITED, 137),
        (ended("CANCELLED"), TaskPhase.GONE, None),
        (ended("FAILED"), TaskPhase.GONE, None),
        (ended("NODE_FAIL"), TaskPhase.GONE, None),
        (ended("FAILED", exit_code=BEGUN_BEFORE), TaskPhase.GONE, None),
    ],
)
def test_no_record_is_no_success_unless_slurm_says_so(bench, job, phase, code):
    bench.begin()
    seen = bench.look(job)
    assert (seen.phase, seen.exit_code) == (phase, code)


def test_what_had_not_begun_when_slurm_ended_it_never_will(bench):
    assert bench.look(ended("NODE_FAIL")).phase is TaskPhase.GONE
    fence = read_record(bench.files.started)
    assert fence is not None
    assert fence["by"] == "stop"
    assert bench.look(ended("NODE_FAIL")).phase is TaskPhase.GONE


def test_a_task_whose_shim_still_writes_is_not_gone(bench, monkeypatch):
    bench.begin()
    monkeypatch.setattr(evidence, "RECORD_S", 3600.0)
    for jobs in ((ended("NODE_FAIL"),), (), (), ()):
        bench.write()
        assert bench.look(*jobs).phase is TaskPhase.UNREACHABLE
    monkeypatch.setattr(evidence, "RECORD_S", 0.0)
    bench.write()
    assert bench.look().phase is TaskPhase.GONE


def test_a_number_that_somebody_else_has_now_says_nothing(bench):
    bench.begin()
    other = ended("COMPLETED", exit_code=0)
    assert bench.look(JOB).phase is TaskPhase.RUNNING
    assert bench.look(replace(other, name="theirs")).phase is TaskPhase.UNREACHABLE
    assert bench.look(replace(other, name="theirs")).phase is TaskPhase.GONE


def test_a_job_that_was_given_another_name_is_known_by_its_comment(bench):
    bench.begin()
    renamed = replace(JOB, name="renamed", comment=f"moulin:me:{ATTEMPT}")
    assert bench.look(renamed).phase is TaskPhase.RUNNING
