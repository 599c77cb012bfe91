"""What a task of the local engine sees and is held to: environment, files, CPUs, memory, gangs."""

import os
import sys
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import EndpointSpec, TaskTemplate
from moulin.engines.local.engine import LocalEngine
from tests.conformance.engine_bench import (
    RealClock,
    make_step,
    nodes_of_this_machine,
    phase,
    wait_for,
    wait_until,
)

SHIM_BYTES_MAX = 10 * 1024 * 1024


def shell(script, **fields):
    return TaskTemplate(command=("sh", "-c", script), **fields)


def python(program):
    return TaskTemplate(command=(sys.executable, "-I", "-S", "-c", program))


def run(bench, task, name="a", **fields):
    step = make_step(name, task, **fields)
    bench.engine.start(step)
    seen = wait_for(bench, step.step, TaskPhase.EXITED)
    return seen, bench.engine.logs(step.step, 0, 1 << 20).data.decode()


@pytest.mark.parametrize(
    ("task", "exit_code"),
    [
        (shell("kill -9 $$"), 137),
        (shell("kill -15 $$"), 143),
        (TaskTemplate(command=("no-such-program",)), 127),
        (TaskTemplate(command=("/etc/passwd",)), 126),
    ],
)
def test_signals_and_unrunnable_programs_have_the_usual_status(bench, task, exit_code):
    seen, log = run(bench, task)
    assert seen.exit_code == exit_code
    assert ("cannot run" in log) == (exit_code in (126, 127))


def test_both_streams_are_in_the_log_and_may_be_read_while_it_grows(bench, tmp_path):
    gate = tmp_path / "gate"
    script = f"echo one; echo two >&2; while [ ! -e {gate} ]; do sleep 0.01; done; printf three"
    step = make_step("a", shell(script))
    bench.engine.start(step)
    wait_until(lambda: bench.engine.logs(step.step, 0, 100).data == b"one\ntwo\n")
    chunk = bench.engine.logs(step.step, 4, 100)
    assert (chunk.data, chunk.next_cursor, chunk.is_end) == (b"two\n", 8, False)
    gate.touch()
    wait_for(bench, step.step, TaskPhase.EXITED)
    chunk = bench.engine.logs(step.step, 8, 100)
    assert (chunk.data, chunk.is_end) == (b"three", True)


def test_the_control_planes_environment_does_not_leak(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUD_SECRET", "do-not-pass-on")
    engine = LocalEngine(tmp_path, clock=RealClock(), nodes=nodes_of_this_machine())
    step = make_step("a", shell("env; cat /proc/$PPID/environ", env={"MINE": "yes"}))
    engine.start(step)
    wait_until(lambda: engine.observe([step.step])[0].phase is TaskPhase.EXITED)
    log = engine.logs(step.step, 0, 1 << 20).data.decode()
    assert "do-not-pass-on" not in log
    lines = log.splitlines()
    for expected in (
        "MINE=yes",
        "RANK=0",
        "WORLD_SIZE=1",
        f"MOULIN_STEP_ID={step.step}",
        "CUDA_VISIBLE_DEVICES=",
        "SLURM_PROCID=0",
        "SKYPILOT_NUM_NODES=1",
        "DSTACK_NODES_NUM=1",
    ):
        assert expected in lines


def test_a_specification_on_disk_is_for_its_owner_only(bench, tmp_path):
    run(bench, shell("true", env={"TOKEN": "secret"}))
    files = [path for path in (tmp_path / "spool").rglob("*") if "shared" not in path.parts]
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


def test_setup_comes_first_in_the_same_shell(bench):
    task = shell("echo $GREETING from $PWD", setup="GREETING=hello; export GREETING; cd /tmp")
    seen, log = run(bench, task)
    assert (seen.exit_code, log) == (0, "hello from /tmp\n")


@pytest.mark.parametrize(("setup", "exit_code"), [("false", 1), ("exit 7", 7), ("(exit 3)", 3)])
def test_a_failing_setup_fails_the_task(bench, setup, exit_code):
    seen, log = run(bench, shell("echo must not run", setup=setup))
    assert (seen.exit_code, log) == (exit_code, "")


def test_a_program_starts_where_it_was_told_to(bench, tmp_path):
    _, log = run(bench, shell("pwd", workdir=str(tmp_path / "effects")))
    assert log == f"{tmp_path / 'effects'}\n"
    _, log = run(bench, shell('pwd; echo "$MOULIN_ATTEMPT_DIR"'), name="b")
    first, second = log.splitlines()
    assert first == second


@pytest.mark.parametrize(
    ("task", "word"),
    [
        (shell("true", workdir="/no/such/place"), "workdir"),
        (shell("true", image="--privileged"), "is no image"),
        (shell("true", env={"A": "b\0c"}), "NUL"),
        (shell("true", env={"A=B": "c"}), "variable"),
        (TaskTemplate(command=()), "command"),
    ],
)
def test_what_can_never_run_here_is_refused_with_a_reason(bench, task, word):
    step = make_step("a", task)
    with pytest.raises(EngineRefused, match=word) as refused:
        bench.engine.start(step)
    assert refused.value.hint
    assert phase(bench, step.step) is TaskPhase.ABSENT


def test_a_program_finds_the_signals_at_their_defaults(bench):
    _, log = run(bench, shell("grep -E 'Sig(Ign|Blk)' /proc/self/status"))
    masks = {int(line.split()[1], 16) for line in log.splitlines()}
    # Signals 32 and 33 are the C library's own: no program can set them, so they come as they are.
    assert {mask & ~(0b11 << 31) for mask in masks} == {0}


def test_two_tasks_meet_at_the_agreed_address(bench):
    """A gang over loopback: rank 0 listens, rank 1 sends what only rank 0 prints."""
    program = """
import os, socket, time
address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
assert os.environ["WORLD_SIZE"] == "2"
if os.environ["RANK"] == "0":
    with socket.create_server(address) as server:
        peer, _ = server.accept()
        print("rank 0 heard", peer.recv(100).decode())
else:
    for _ in range(3000):
        try:
            peer = socket.create_connection(address)
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    peer.sendall(b"rank " + os.environ["NODE_RANK"].encode())
"""
    nodes = ("node-0", "node-0")
    steps = [make_step("gang", python(program), rank=rank, nodes=nodes) for rank in (1, 0)]
    for step in steps:
        bench.engine.start(step)
    ends = [wait_for(bench, step.step, TaskPhase.EXITED).exit_code for step in steps]
    assert ends == [0, 0]
    assert bench.engine.logs(steps[1].step, 0, 100).data == b"rank 0 heard rank 1\n"


def test_two_attempts_get_two_ports(bench):
    logs = [run(bench, shell('echo "$MASTER_PORT"'), name=name)[1] for name in ("a", "b", "c")]
    assert len(set(logs)) == 3


def test_each_task_stays_on_the_cpus_of_its_node(tmp_path):
    nodes = nodes_of_this_machine(len(os.sched_getaffinity(0)))
    engine = LocalEngine(tmp_path, clock=RealClock(), nodes=nodes)
    task = python("import os; print(*sorted(os.sched_getaffinity(0)), sep=',')")
    steps = []
    for number, node in enumerate(nodes):
        step = make_step(f"n{number}", task, nodes=(node.node,))
        engine.start(step)
        steps.append(step.step)
    wait_until(lambda: {found.phase for found in engine.observe(steps)} == {TaskPhase.EXITED})
    seen = [engine.logs(step, 0, 100).data.decode().strip() for step in steps]
    assert seen == [",".join(map(str, node.cpu_ids)) for node in nodes]
    assert len({cpu for cpus in seen for cpu in cpus.split(",")}) == sum(
        len(node.cpu_ids) for node in nodes
    )


def test_a_task_over_its_memory_limit_is_ended_and_says_so(bench):
    program = "import time; block = bytearray(300_000_000); time.sleep(1000)"
    seen, _ = run(bench, python(program), memory_bytes=100_000_000)
    assert seen.exit_code == 137
    assert "memory limit of 100000000 bytes exceeded" in seen.evidence
    assert bench.engine.memory_limit_method in seen.evidence
    assert seen.memory_bytes_max > 100_000_000


def test_memory_shared_by_forked_processes_is_counted_once(bench):
    """Five processes over one 60 MB block hold 60 MB, not the 300 MB their sizes add up to."""
    program = """
import os, time
block = bytes(60_000_000)
children = 0
for _ in range(4):
    if os.fork() == 0:
        time.sleep(1.5)
        os._exit(0)
time.sleep(1.5)
"""
    seen, _ = run(bench, python(program), memory_bytes=150_000_000)
    assert (seen.exit_code, seen.evidence) == (0, "exit status")


def test_cpu_time_of_the_whole_tree_is_counted(bench):
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    script = f'{sys.executable} -I -S -c "{burn}" & {sys.executable} -I -S -c "{burn}"; wait'
    seen, _ = run(bench, shell(script))
    assert seen.cpu_ns >= 400_000_000


def test_a_running_server_reports_its_address_once_it_is_ready(bench, tmp_path):
    gate = tmp_path / "gate"
    wait = f"while [ ! -e {gate} ]; do sleep 0.01; done"
    script = f'{wait}; echo 127.0.0.1:4321 > "$MOULIN_READY_FILE"; sleep 1000'
    step = make_step("a", shell(script), endpoint=EndpointSpec(model="m"))
    bench.engine.start(step)
    before = bench.engine.observe([step.step])[0]
    assert (before.phase, before.is_ready, before.address) == (TaskPhase.RUNNING, False, "")
    gate.touch()
    wait_until(lambda: bench.engine.observe([step.step])[0].is_ready)
    bench.renew()
    assert bench.engine.observe([step.step])[0].address == "127.0.0.1:4321"
    bench.engine.stop(step.step, 0)
    ended = wait_for(bench, step.step, TaskPhase.EXITED)
    assert (ended.is_ready, ended.address) == (False, "")


def test_a_shim_is_small(bench):
    step = make_step("a", bench.program(seconds=1000))
    claim = bench.engine.start(step)
    wait_until(lambda: bench.runs(step.step) == 1)
    rollup = Path(f"/proc/{claim.pid}/smaps_rollup").read_text()
    resident = next(line for line in rollup.splitlines() if line.startswith("Rss:"))
    assert int(resident.split()[1]) * 1024 <= SHIM_BYTES_MAX


def test_a_group_is_removed_with_its_task(bench):
    if bench.cgroup is None:
        assert bench.engine.memory_limit_method == "rss-watch"
        return
    step = make_step("a", bench.program(seconds=1000))
    group = Path(bench.cgroup.group(str(bench.directory / "spool" / step.attempt / "0")))
    bench.engine.start(step)
    wait_until(lambda: bench.runs(step.step) == 1)
    assert (group / "cgroup.procs").read_text() != ""
    bench.engine.stop(step.step, 0)
    wait_for(bench, step.step, TaskPhase.EXITED)
    assert not group.exists()
