"""What an engine makes of replicas' doors: the file and the words of a step, and who is believed."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from moulin.domain.ids import AttemptId, NodeId, OrganisationId, ProjectId, StepId, WorkloadId
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.domain.registration import Registration
from moulin.domain.workload import EndpointSpec, Resources, TaskTemplate
from moulin.engines.slurm.doors import Doors
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.task.sidecar import read_facts
from moulin.engines.task.spool import make_directory, step_files

ATTEMPT = AttemptId("end_1.u0.g2")
NODE = NodeCapacity(
    node=NodeId("n1"),
    cpu_milli=8000,
    memory_bytes=2**34,
    machine_class="cpu",
    address="10.1.2.3",
)
STEP = StartStep(
    step=StepId(f"{ATTEMPT}.t0"),
    attempt=ATTEMPT,
    workload=WorkloadId("end_1"),
    organisation=OrganisationId("o"),
    project=ProjectId("p"),
    unit=0,
    generation=2,
    rank=0,
    nodes=(NODE.node,),
    devices=(),
    resources=Resources(),
    task=TaskTemplate(command=("serve", "--model", "a b")),
    endpoint=EndpointSpec(model="tiny"),
)


@dataclass
class Words:
    """Registrations that a test writes by hand."""

    held: dict[AttemptId, Registration] = field(default_factory=dict)

    def of(self, attempt: AttemptId) -> Registration | None:
        return self.held.get(attempt)

    def replica_key(self, attempt: AttemptId) -> str:
        return f"door of {attempt}"

    def registration_key(self, attempt: AttemptId) -> str:
        return f"word of {attempt}"

    def say(self, address: str, expires_at_ns: int) -> None:
        self.held[ATTEMPT] = Registration(
            attempt=ATTEMPT,
            model="tiny",
            address=address,
            started_at_ns=1,
            expires_at_ns=expires_at_ns,
        )


@dataclass
class Clock:
    at_ns: int = 1000

    def now_ns(self) -> int:
        return self.at_ns


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
def files(tmp_path):
    found = step_files(tmp_path, STEP.step)
    make_directory(found.directory)
    return found


def doors(tmp_path: Path, words: Words, clock: Clock | None = None) -> Doors:
    settings = SlurmSettings(
        directory=tmp_path, python="python3.9", control_url="https://c:8700", control_ca="/ca.pem"
    )
    return Doors(settings, words, clock or Clock(), "/shared/sidecar.py")


def test_a_replica_s_program_runs_behind_the_sidecar_with_its_keys_in_a_file(
    tmp_path, words, files
):
    behind = doors(tmp_path, words).behind(STEP, files, NODE)
    assert behind.task.command == (
        *("python3.9", "-I", "-S", "-E", "/shared/sidecar.py"),
        *STEP.task.command,
    )
    door = Path(files.directory) / "door"
    assert door.stat().st_mode & 0o777 == 0o600
    assert read_facts(str(door)) == {
        "replica_key": f"door of {ATTEMPT}",
        "registration_key": f"word of {ATTEMPT}",
        "host": "10.1.2.3",
        "url": "https://c:8700",
        "ca": "/ca.pem",
        "model": "tiny",
        "attempt": ATTEMPT,
        "heartbeat_s": "10",
    }
    assert not any("of end_1" in word for word in behind.task.command)


def test_what_is_no_endpoint_has_no_door(tmp_path, words, files):
    job = replace(STEP, endpoint=None)
    assert doors(tmp_path, words).behind(job, files, NODE) is job
    assert list(Path(files.directory).iterdir()) == []


def test_the_file_counts_until_there_was_a_word_and_then_the_word_alone(tmp_path, words, files):
    clock = Clock()
    here = doors(tmp_path, words, clock)
    assert here.address(ATTEMPT, files) == ""
    Path(files.ready).write_text("10.1.2.3:4000\n")
    assert (here.address(ATTEMPT, files), here.word(ATTEMPT)) == ("10.1.2.3:4000", "")
    words.say("10.1.2.3:5000", clock.at_ns + 1)
    assert (here.address(ATTEMPT, files), here.word(ATTEMPT)) == ("10.1.2.3:5000",) * 2
    clock.at_ns += 1
    assert (here.address(ATTEMPT, files), here.word(ATTEMPT)) == ("", "ran out")
    words.say("10.1.2.3:5000", clock.at_ns + 30)
    assert here.address(ATTEMPT, files) == "10.1.2.3:5000"
