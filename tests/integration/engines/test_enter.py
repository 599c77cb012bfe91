"""Going into running tasks of the local engine: what a command sees there, and which ports are reached."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from moulin.domain.errors import NotFound
from moulin.domain.observation import TaskPhase
from moulin.domain.session import FRAME_HEAD, EntryWanted, FrameKind
from moulin.domain.workload import TaskTemplate
from moulin.engines.local.cgroup import find_cgroup_base
from moulin.engines.task.enter import DATA, END, HEAD, OPEN
from tests.conformance.engine_bench import LocalBench, make_step, wait_for, wait_until
from tests.terminals import Terminal

OPENED: list[subprocess.Popen[bytes]] = []
WAITING = "while :; do sleep 0.05; done"


@pytest.fixture
def bench(tmp_path):
    """This machine's engine, with its control groups if it has them."""
    made = LocalBench(tmp_path, find_cgroup_base())
    yield made
    made.close()


@pytest.fixture
def task(bench, tmp_path):
    """A running task with a variable of its own, in a folder of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    template = TaskTemplate(
        command=("sh", "-c", f"echo up; {WAITING}"), env={"COLOUR": "blue"}, workdir=str(folder)
    )
    return begun(bench, template)


def begun(bench, template, name="a"):
    step = make_step(name, template)
    bench.engine.start(step)
    wait_until(lambda: bench.engine.logs(step.step, 0, 100).data.startswith(b"up"))
    return step.step


@pytest.fixture(autouse=True)
def opened():
    """Processes that the test started, ended and their pipes closed with it."""
    yield OPENED
    for process in OPENED:
        process.terminate()
        process.wait(20)
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    OPENED.clear()


def enter(bench, step, *command, **wanted):
    entry = bench.engine.entry(step, EntryWanted(command=command, **wanted))
    process = subprocess.Popen(
        entry.argv,
        env=dict(entry.env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    OPENED.append(process)
    return process


def run(bench, step, script, given=b""):
    process = enter(bench, step, "sh", "-c", script)
    out, err = process.communicate(given, timeout=20)
    return process.returncode, out.decode(), err.decode()


def test_a_command_has_the_tasks_environment_folder_and_ids(bench, task, tmp_path):
    status, out, _ = run(bench, task, 'echo "$COLOUR $MOULIN_STEP_ID $(pwd) $(id -u)"')
    assert status == 0
    assert out.split() == ["blue", task, str(tmp_path / "work"), str(os.getuid())]


def test_a_command_has_the_tasks_cpus_and_control_group(bench, task):
    shim = bench.engine.observe([task])[0].claim.pid
    found = subprocess.run(["pgrep", "-P", str(shim)], capture_output=True, check=True, text=True)
    first = Path("/proc", found.stdout.split()[0])
    _, out, _ = run(bench, task, "grep Cpus_allowed_list /proc/self/status; grep ^0:: /proc/self/cgroup")  # fmt: skip
    told = (first / "status").read_text() + (first / "cgroup").read_text()
    assert [line for line in told.splitlines() if line in out.splitlines()] == out.splitlines()


def test_pipes_and_status_are_the_commands_own(bench, task):
    assert run(bench, task, "cat; echo no >&2; exit 7", b"given") == (7, "given", "no\n")
    assert run(bench, task, "kill -TERM $$")[0] == 143
    process = enter(bench, task, "no-such-program")
    assert process.communicate(timeout=20)[1].startswith(b"moulin: cannot run no-such-program")
    assert process.returncode == 127


def test_a_terminal_is_one_with_a_shell_whose_ctrl_c_ends_what_runs(bench, task):
    screen = Terminal(bench.engine.entry(task, EntryWanted(terminal="vt100")), {"PS1": "> "})
    screen.type(b"tty; echo $TERM is $((1+1))\n")
    screen.expect(b"/dev/pts/")
    screen.expect(b"vt100 is 2")
    screen.type(b"sleep 1000; echo st''atus $?\n")
    screen.expect(b"\n")
    wait_until(lambda: b"sleep" in subprocess.run(["pgrep", "-l", "-f", "^sleep 1000"], capture_output=True, check=False).stdout)  # fmt: skip
    screen.type(b"\x03")
    screen.expect(b"\n")
    screen.type(b"exit 9\n")
    assert screen.process.wait(20) == 9
    screen.close()


def test_what_somebody_started_inside_ends_with_the_session_and_with_the_task(bench, task):
    process = enter(bench, task, "sh", "-c", "sleep 4321 & echo going; wait")
    assert process.stdout.readline() == b"going\n"
    process.terminate()
    assert process.wait(20) == 129
    wait_until(lambda: not sleepers())
    process = enter(bench, task, "sh", "-c", "setsid sleep 4321 & echo going; wait")
    assert process.stdout.readline() == b"going\n"
    bench.engine.stop(task, 0)
    wait_for(bench, task, TaskPhase.EXITED)
    assert process.wait(20) in (137, 0)
    wait_until(lambda: not sleepers())


def sleepers():
    return subprocess.run(["pgrep", "-f", "^sleep 4321"], capture_output=True, check=False).stdout


def test_only_what_runs_can_be_entered(bench, task):
    bench.engine.stop(task, 0)
    wait_for(bench, task, TaskPhase.EXITED)
    for step in (task, make_step("never", TaskTemplate(command=("true",))).step):
        with pytest.raises(NotFound):
            bench.engine.entry(step, EntryWanted())


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False).returncode != 0,
    reason="namespaces of users are not to be had here",
)
def test_a_command_is_inside_the_container_of_a_task_that_has_one(bench):
    inner = f"hostname inside; echo up; readlink /proc/self/ns/mnt; {WAITING}"
    template = TaskTemplate(
        command=("unshare", "-Urpfum", "--mount-proc", "sh", "-c", inner), env={"WHERE": "in"}
    )
    step = begun(bench, template)
    wait_until(lambda: b"mnt:" in bench.engine.logs(step, 0, 200).data)
    mounts = bench.engine.logs(step, 0, 200).data.split()[1].decode()
    status, out, err = run(bench, step, "hostname; readlink /proc/self/ns/mnt; echo $WHERE; ps -e")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == ["inside", mounts, "in"]
    assert any(line.split()[0] == "1" and "sh" in line for line in lines[4:])


# -- ports ----------------------------------------------------------------------------------------

ECHO = """
import socket
served = socket.create_server(("127.0.0.1", 0))
print("up", served.getsockname()[1], flush=True)
while True:
    made, _ = served.accept()
    made.sendall(b"hello ")
    while data := made.recv(65536):
        made.sendall(data.upper())
    made.close()
"""


def served(bench):
    template = TaskTemplate(command=(sys.executable, "-I", "-S", "-c", ECHO))
    step = begun(bench, template)
    wait_until(lambda: b"\n" in bench.engine.logs(step, 0, 100).data)
    return step, int(bench.engine.logs(step, 0, 100).data.split()[1])


def frame(stream, kind, data=b""):
    return HEAD.pack(stream, kind, len(data)) + data


def answer_of(process, count):
    """Read frames until so many streams ended; return what each said."""
    said: dict[int, bytes] = {}
    ended = 0
    while ended < count:
        stream, kind, size = HEAD.unpack(process.stdout.read(HEAD.size))
        if stream == 0:
            assert kind == OPEN
            continue
        said[stream] = said.get(stream, b"") + process.stdout.read(size)
        ended += kind == END
    return said


def test_a_port_of_the_task_is_reached_by_several_connections(bench):
    step, port = served(bench)
    process = enter(bench, step, port=port)
    for stream in (1, 2):
        process.stdin.write(frame(stream, OPEN))
    process.stdin.write(frame(2, DATA, b"b" * 100_000) + frame(1, DATA, b"a") + frame(1, END))
    process.stdin.write(frame(2, END))
    process.stdin.flush()
    assert answer_of(process, 2) == {1: b"hello A", 2: b"hello " + b"B" * 100_000}
    process.stdin.close()
    assert process.wait(20) == 0


def test_a_port_that_is_somebody_elses_is_not_reached(bench, task):
    with socket.create_server(("127.0.0.1", 0)) as other:
        process = enter(bench, task, port=other.getsockname()[1])
        _, err = process.communicate(timeout=20)
        assert b"no process of the task listens on port" in err
        assert process.returncode == 125


def test_frames_are_as_the_client_writes_them():
    assert HEAD.format == FRAME_HEAD.format
    assert tuple(FrameKind) == (DATA, OPEN, END)
