"""Slurm's commands from here and over one SSH connection: the same words, the same answers."""

import getpass

import pytest

from moulin.domain.errors import EngineUnavailable
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import LocalTransport, SshTransport
from tests.conformance.engine_bench import RealClock, make_step, wait_until

WORDS = (
    *("printf", "%s|", "a b", "$HOME", "'quoted'", 'two "words"', "*", "", "é"),
    *("$(echo no):$PATH", "`echo no`:$PATH", "; echo no #", "a\nb"),
)


@pytest.fixture
def remote(ssh_server, slurm_cluster):
    return SshTransport(
        f"{getpass.getuser()}@127.0.0.1",
        environment=slurm_cluster.environment,
        folder="/no such folder",
        options=ssh_server.options,
    )


@pytest.mark.slurm
def test_words_arrive_as_they_were_given(remote):
    here = LocalTransport()
    assert remote.run(WORDS).output == here.run(WORDS).output
    assert remote.run(("cat",), stdin=b"in\0put").output == b"in\0put"
    failed = remote.run(("sh", "-c", "echo no >&2; exit 3"))
    assert (failed.status, failed.words) == (3, "no")


@pytest.mark.slurm
def test_an_attempt_runs_over_one_connection(tmp_path, remote, ssh_server):
    before = ssh_server.connections()
    settings = SlurmSettings(directory=tmp_path / "shared", machine_class="here", poll_s=0.2)
    engine = SlurmEngine(settings, Commands(remote), clock=RealClock())
    step = make_step("a", TaskTemplate(command=("sh", "-c", "echo far; exit 2")))
    engine.start(step)
    wait_until(lambda: engine.observe([step.step])[0].phase is TaskPhase.EXITED)
    assert engine.observe([step.step])[0].exit_code == 2
    assert engine.logs(step.step, 0, 100).data == b"far\n"
    assert ssh_server.connections() == before + 1


def test_a_host_that_is_not_there_is_unavailable():
    nowhere = SshTransport("127.0.0.1", options=("-F", "none", "-p", "1"))
    with pytest.raises(EngineUnavailable, match="over SSH"):
        nowhere.run(("squeue",))


def test_a_command_that_is_not_there_is_unavailable():
    with pytest.raises(EngineUnavailable, match="no-such-command"):
        LocalTransport().run(("no-such-command",))
