"""Leased nodes on engines themselves: who gets in, what a new instance finds, what is left: nothing."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused
from moulin.domain.lease import Login, read_login
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import LeaseSpec, TaskTemplate
from moulin.engines.local.cgroup import find_cgroup_base
from tests.conformance.engine_bench import (
    LocalBench,
    SlurmBench,
    make_step,
    wait_for,
    wait_until,
)
from tests.slurm_cluster import living_pids
from tests.ssh_server import need_ssh


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def bench(request, tmp_path):
    need_ssh()
    made = local_bench(tmp_path) if request.param == "local" else None
    if made is None:
        made = SlurmBench(tmp_path, request.getfixturevalue("slurm_cluster"))
    yield made
    made.close()


def local_bench(folder: Path) -> LocalBench | SlurmBench:
    made = LocalBench(folder, find_cgroup_base())
    made.nodes = tuple(replace(node, has_login=True) for node in made.nodes)
    made.renew()
    return made


@pytest.fixture
def key(tmp_path) -> Path:
    path = tmp_path / "key"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(words, check=True)
    return path


def leased(key, **more):
    lease = LeaseSpec(ssh_keys=(key.with_suffix(".pub").read_text().strip(),), warn_s=60)
    step = make_step("lease", TaskTemplate(command=()), **more)
    return replace(step, lease=lease, time_limit_s=600)


def login_of(bench, step) -> Login | None:
    return read_login(bench.engine.observe([step.step])[0].address)


def ssh(login: Login, key: Path, command: str) -> subprocess.CompletedProcess[str]:
    known = key.with_name("known")
    known.write_text(f"[{login.host}]:{login.port} {login.host_key}\n")
    options = ("BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={known}")
    flags = [word for option in options for word in ("-o", option)]
    place = (*flags, "-i", str(key), "-p", str(login.port), f"{login.user}@{login.host}", command)
    return subprocess.run(
        ["ssh", "-F", "none", *place], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_new_instance_finds_the_login_and_nothing_is_left_of_it(bench, key):
    step = leased(key)
    bench.engine.start(step)
    wait_until(lambda: login_of(bench, step) is not None, bench.pause)
    login = login_of(bench, step)
    assert login is not None
    bench.renew()
    wait_until(lambda: login_of(bench, step) is not None, bench.pause)
    assert login_of(bench, step) == login
    (seen,) = bench.engine.observe([step.step])
    assert (seen.phase, seen.is_ready) == (TaskPhase.RUNNING, True)
    # A login is one process among others of the task; what leaves its session is ended with it too.
    done = ssh(
        login, key, "setsid nohup sleep 4321 >/dev/null 2>&1 & echo $!; echo $MOULIN_STEP_ID"
    )
    pid, name = done.stdout.split()
    assert name == step.step
    bench.engine.extend(step.step, 900)
    bench.engine.stop(step.step, 1)
    ended = wait_for(bench, step.step, TaskPhase.EXITED)
    assert ended.ended_at_ns > ended.started_at_ns
    assert int(pid) not in living_pids()
    assert ssh(login, key, "true").returncode == 255
    files = [path for path in (bench.directory / "spool").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"PRIVATE KEY" in path.read_bytes()]


def test_only_the_keys_of_the_lease_let_in(bench, key):
    step = leased(key)
    bench.engine.start(step)
    wait_until(lambda: login_of(bench, step) is not None, bench.pause)
    login = login_of(bench, step)
    assert login is not None
    other = key.with_name("other")
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)]
    subprocess.run(words, check=True)
    refused = ssh(login, other, "true")
    assert (refused.returncode, "publickey" in refused.stderr) == (255, True)
    # Its host key is its own: another one is not believed.
    shown = other.with_suffix(".pub").read_text().split()
    liar = replace(login, host_key=" ".join(shown[:2]))
    assert "Host key verification failed" in ssh(liar, key, "true").stderr
    assert shutil.which("ssh")


def test_without_a_server_nobody_is_let_in(tmp_path, key):
    bench = LocalBench(tmp_path, None)
    with pytest.raises(EngineRefused, match="there is no sshd"):
        bench.engine.start(leased(key))
    bench.close()
