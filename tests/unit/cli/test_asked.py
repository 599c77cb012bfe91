"""`moulin run`: how a file, a command and flags become one workload."""

from pathlib import Path

import pytest

from moulin.cli.asked import Flags, read_flags, wanted
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


def test_what_a_program_is_given():
    flags = Flags(
        image="ghcr.io/mill/grind:2",
        secrets=("HF_TOKEN", "KEY=tls-key"),
        inputs=("data=s3://mill/set", "model=/share/m=1"),
        stop_signal="USR1",
        grace="2m",
        is_notified=True,
    )
    spec = wanted((), ("true",), flags)
    assert spec.task is not None
    assert spec.task.image == "ghcr.io/mill/grind:2"
    assert spec.task.secrets == {"HF_TOKEN": "HF_TOKEN", "KEY": "tls-key"}
    assert spec.task.inputs == {"data": "s3://mill/set", "model": "/share/m=1"}
    assert (spec.stop_signal, spec.stop_grace_s, spec.is_notified) == ("USR1", 120, True)
    spec = wanted((), ("true",), Flags(outputs=("made=/share/{id}",)))
    assert spec.task is not None
    assert spec.task.outputs == {"made": "/share/{id}"}


GIVEN = """
run: python train.py
image: alpine
secrets: {A: a, B: {file: b}}
inputs: {x: /x}
stop_signal: INT
grace: 20s
"""


def test_flags_add_to_what_the_file_gives(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(GIVEN, "utf-8")
    flags = Flags(image="debian", secrets=("B=c",), inputs=("y=/y",), grace="5s")
    spec = wanted((str(path),), None, flags)
    assert spec.task is not None
    assert (spec.task.image, spec.task.inputs) == ("debian", {"x": "/x", "y": "/y"})
    assert (spec.task.secrets, spec.task.secret_files) == ({"A": "a", "B": "c"}, {})
    assert (spec.stop_signal, spec.stop_grace_s) == ("INT", 5)
    with pytest.raises(InvalidSpec, match="a program in an image are not saved"):
        wanted((str(path),), None, Flags(outputs=("o=/o",)))
    with pytest.raises(InvalidSpec, match="would be kept in the clear"):
        wanted((str(path),), None, Flags(env=("AWS_SECRET_ACCESS_KEY=x",)))


def test_an_endpoint_has_no_program_to_give_things_to(tmp_path):
    path = tmp_path / "endpoint.yaml"
    path.write_text("kind: endpoint\nmodel: m\n", "utf-8")
    assert wanted((str(path),), None, Flags(cpus="2")).resources.cpu_milli == 2000
    for flags in (Flags(image="alpine"), Flags(env=("A=1",)), Flags(outputs=("o=/o",))):
        with pytest.raises(InvalidRequest, match="are for jobs"):
            wanted((str(path),), None, flags)


def test_flags_are_read_from_a_commands_parameters():
    values = {"image": "alpine", "env": None, "is_held": True, "words": ["x"]}
    assert read_flags(values) == Flags(image="alpine", is_held=True)


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
        ((), ("true",), Flags(image="no image"), InvalidSpec, "image: .* is no image"),
        ((), ("true",), Flags(inputs=("a",)), InvalidRequest, "--input 'a'"),
        ((), ("true",), Flags(inputs=("a=here",)), InvalidSpec, "is no address"),
        ((), ("true",), Flags(secrets=("a b",)), InvalidSpec, "is no name of a variable"),
        ((), ("true",), Flags(stop_signal="KILL"), InvalidSpec, "stop_signal"),
    ],
    ids=range(15),
)
def test_what_cannot_be_meant(words, command, flags, error, message):
    with pytest.raises(error, match=message):
        wanted(words, command, flags)
