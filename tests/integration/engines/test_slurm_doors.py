"""What an engine makes of replicas' doors: the file and the words of a step, and who is believed."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from moulin.domain.ids import AttemptId, NodeId, OrganisationId, ProjectId, StepId, WorkloadId
from moulin.domain.observation import NodeCapacity, Observation, TaskPhase
from moulin.domain.plan import StartStep
from moulin.domain.registration import Registration
from moulin.domain.workload import EndpointSpec, Resources, TaskTemplate
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.doors import Doors
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import LocalTransport
from moulin.engines.task.sidecar import read_facts
from moulin.engines.task.spool import make_directory, step_files
from tests.conformance.engine_bench import RealClock

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


class Ports:
    """Ways over SSH that a test opens by hand."""

    def __init__(self) -> None:
        self.open: dict[str, str] = {}
        self.is_left = False

    def address(self, attempt: AttemptId, target: str) -> str:
        return self.open.get(target, "")

    def word(self, attempt: AttemptId) -> str:
        return " ".join(self.open.values())

    def why_not(self, attempt: AttemptId) -> str:
        return "" if self.open else "no way"

    def release(self, attempt: AttemptId) -> None:
        self.is_left = True


def test_a_door_over_ssh_is_where_its_file_or_its_word_says_and_handed_out_as_a_port_here(
    tmp_path, words, files
):
    clock, ports = Clock(), Ports()
    here = Doors(SlurmSettings(directory=tmp_path), words, clock, "/shared/sidecar.py", ports)  # type: ignore[arg-type]
    Path(files.ready).write_text("n7:4000\n")
    assert (here.address(ATTEMPT, files), here.trouble(ATTEMPT)) == ("", "no way")
    ports.open["n7:4000"] = "127.0.0.1:40001"
    assert (here.address(ATTEMPT, files), here.trouble(ATTEMPT)) == ("127.0.0.1:40001", "")
    before = here.word(ATTEMPT)
    words.say("n7:5000", clock.at_ns + 1)
    assert here.address(ATTEMPT, files) == ""
    ports.open["n7:5000"] = "127.0.0.1:40002"
    assert here.address(ATTEMPT, files) == "127.0.0.1:40002"
    assert here.word(ATTEMPT) != before
    clock.at_ns += 1
    assert here.address(ATTEMPT, files) == ""
    assert here.trouble(ATTEMPT) == "its registration ran out"
    here.release(ATTEMPT)
    assert ports.is_left


@pytest.mark.slurm
def test_on_a_cluster_a_word_that_runs_out_ends_nothing(tmp_path, slurm_cluster, words):
    settings = SlurmSettings(directory=tmp_path, machine_class="here", poll_s=0.2)
    commands = Commands(LocalTransport(slurm_cluster.environment))
    engine = SlurmEngine(settings, commands, clock=RealClock(), registrations=words)
    script = 'echo 127.0.0.1:9 > "$MOULIN_READY_FILE"; sleep 1000'
    task = TaskTemplate(command=("sh", "-c", script))
    step = replace(STEP, task=task, nodes=(NodeId("node-0"),))

    def seen(is_wanted) -> Observation:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            for found in engine.changes():
                if found.step == step.step and is_wanted(found):
                    return found
            time.sleep(0.05)
        raise AssertionError("it never came")

    try:
        engine.start(step)
        first = seen(lambda found: found.is_ready)
        assert first.address.startswith("127.0.0.1:")  # its own door, as its file says
        words.say("127.0.0.1:5000", time.time_ns() + 60 * 10**9)
        assert seen(lambda found: found.is_ready).address == "127.0.0.1:5000"
        words.say("127.0.0.1:5000", time.time_ns() + 10**9)  # and now it runs out
        silent = seen(lambda found: not found.is_ready)
        assert (silent.phase, silent.address) == (TaskPhase.RUNNING, "")
        assert silent.evidence.startswith("its registration ran out")
        words.say("127.0.0.1:5000", time.time_ns() + 60 * 10**9)
        assert seen(lambda found: found.is_ready).address == "127.0.0.1:5000"
        heir = SlurmEngine(settings, commands, clock=RealClock(), registrations=words)
        assert heir.observe([step.step])[0].address == "127.0.0.1:5000"
    finally:
        engine.stop(step.step, 0)
    assert seen(lambda found: found.phase is TaskPhase.EXITED).exit_code == 137
