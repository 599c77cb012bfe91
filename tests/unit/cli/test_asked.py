"""`moulin run`: how a file, a command and flags become one workload."""

from pathlib import Path

import pytest

from moulin.cli.asked import Flags, wanted
from moulin.domain.errors import InvalidRequest, InvalidSpec, NotFound
from moulin.domain.workload import Resources, Retry, When, Where, WorkloadKind

FILE = """
name: train
resources: {cpus: 4, memory: 8GB}
run: python train.py
envs: {A: "1", B: "2"}
where: {countries: [FR]}
labels: {team: x}
priority: 10
workdir: .
retention: 2d
"""


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(FILE, "utf-8")
    return path


def test_a_command_is_taken_as_it_is():
    spec = wanted((), ("/usr/bin/python3", "-c", "print(1)"), Flags())
    assert spec.kind is WorkloadKind.JOB
    assert spec.name == "python3"
    assert spec.task is not None
    assert spec.task.command == ("/usr/bin/python3", "-c", "print(1)")
    assert spec.task.workdir == ""


def test_flags_change_what_the_file_says(job_file):
    flags = Flags(
        cpus="2", env=("B=3", "C=x=y"), countries=("SE",), nodes=2, retry=3, deadline="1h"
    )
    spec = wanted((str(job_file),), None, flags)
    assert spec.name == "train"
    assert spec.resources == Resources(cpu_milli=2000, memory_bytes=8 * 10**9)
    assert spec.where == Where(countries=("SE",))
    assert spec.nodes == 2
    assert spec.retry == Retry(attempts_max=3)
    assert spec.when == When(deadline_s=3600)
    assert spec.priority == 10
    assert spec.labels == {"team": "x"}
    assert spec.task is not None
    assert spec.task.env == {"A": "1", "B": "3", "C": "x=y"}
    assert not Path(spec.task.workdir).is_absolute()
    assert Path(spec.task.workdir).resolve() == job_file.parent


def test_without_flags_the_file_is_taken_as_it_is(job_file):
    spec = wanted((str(job_file),), None, Flags())
    assert (spec.priority, spec.where.countries, spec.resources.cpu_milli) == (10, ("FR",), 4000)
    assert spec.retention_s == 2 * 86400


def test_every_flag_of_a_command():
    flags = Flags(
        name="n",
        memory="1GB",
        accelerators="B300:2",
        zones=("fr",),
        time_limit="30m",
        priority=0,
        labels=("a=b",),
        workdir=Path("/"),
        retention="0s",
    )
    spec = wanted((), ("true",), flags)
    assert spec.name == "n"
    assert spec.resources.memory_bytes == 10**9
    assert (spec.resources.accelerator_class, spec.resources.accelerators) == ("B300", 2)
    assert spec.where.zones == ("fr",)
    assert spec.time_limit_s == 1800
    assert spec.priority == 0
    assert spec.labels == {"a": "b"}
    assert spec.task is not None
    assert spec.task.workdir == "/"
    assert spec.retention_s == 0


@pytest.mark.parametrize(
    ("words", "command", "flags", "error", "message"),
    [
        ((), None, Flags(), InvalidRequest, "run nothing"),
        (("echo", "hi"), None, Flags(), InvalidRequest, "neither a .yaml file nor a command"),
        (("job.yaml",), ("true",), Flags(), InvalidRequest, "only one of them"),
        (("absent.yaml",), None, Flags(), NotFound, "absent.yaml"),
        ((), (), Flags(), InvalidSpec, "a job needs a command"),
        ((), ("true",), Flags(cpus="many"), InvalidSpec, "resources.cpus"),
        ((), ("true",), Flags(countries=("France",)), InvalidSpec, "where.countries"),
        ((), ("true",), Flags(env=("A",)), InvalidRequest, "--env 'A'"),
        ((), ("true",), Flags(name="a b"), InvalidSpec, "cannot be a name"),
        ((), ("true",), Flags(nodes=0), InvalidSpec, "num_nodes"),
    ],
    ids=range(10),
)
def test_what_cannot_be_meant(words, command, flags, error, message):
    with pytest.raises(error, match=message):
        wanted(words, command, flags)
