"""Going into tasks of a real Slurm: beside them, on their node, within their job."""

import os
import subprocess
import sys

import pytest

from moulin.domain.errors import EngineRefused, NotFound
from moulin.domain.observation import TaskPhase
from moulin.domain.session import EntryWanted, FrameKind, Frames, frame
from moulin.domain.workload import TaskTemplate
from tests.conformance.engine_bench import SlurmBench, make_step, wait_for, wait_until
from tests.integration.engines.test_slurm_arrays import elements
from tests.terminals import Terminal

pytestmark = pytest.mark.slurm

SERVING = """
import os, socket
served = socket.create_server(("127.0.0.1", 0))
print("up", served.getsockname()[1], os.environ["SLURMD_NODENAME"], flush=True)
while True:
    made, _ = served.accept()
    made.sendall(made.recv(100).upper())
    made.close()
"""


@pytest.fixture
def bench(tmp_path, slurm_cluster):
    made = SlurmBench(tmp_path, slurm_cluster)
    yield made
    made.close()


def began(bench, *steps):
    """Start a gang and return what each of its tasks said first."""
    for step in steps:
        bench.engine.start(step)

    def said(step):
        return bench.engine.logs(step.step, 0, 100).data.decode()

    wait_until(lambda: all("\n" in said(step) for step in steps))
    for step in steps:
        wait_for(bench, step.step, TaskPhase.RUNNING)
    return [said(step).split() for step in steps]


def run(bench, step, wanted, given=b""):
    entry = bench.engine.entry(step.step, wanted)
    return subprocess.run(
        entry.argv, env=dict(entry.env), input=given, capture_output=True, timeout=60, check=False
    )


def test_commands_terminals_and_ports_of_each_task_of_a_gang(bench):
    task = TaskTemplate(command=(sys.executable, "-I", "-S", "-c", SERVING), env={"HUE": "red"})
    nodes = ("node-2", "node-0")
    steps = [make_step("g", task, rank=rank, nodes=nodes) for rank in range(2)]
    ports = [int(words[1]) for words in began(bench, *steps)]
    for rank, step in enumerate(steps):
        script = "cat; echo $HUE $RANK $SLURMD_NODENAME; pwd; echo no >&2; exit 7"
        done = run(bench, step, EntryWanted(command=("sh", "-c", script)), b"given ")
        folder = str(bench.directory.resolve())
        assert done.returncode == 7
        assert done.stdout.decode().split()[:4] == ["given", "red", str(rank), nodes[rank]]
        assert done.stdout.decode().split()[4].startswith(folder)
        assert b"no" in done.stderr
    asked = frame(1, FrameKind.OPEN) + frame(1, FrameKind.DATA, b"hello")
    entry = bench.engine.entry(steps[1].step, EntryWanted(port=ports[1]))
    with subprocess.Popen(
        entry.argv, env=dict(entry.env), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(asked)
        process.stdin.flush()
        frames, told = Frames(), {}
        while FrameKind.END not in told:
            for stream, kind, data in frames.add(os.read(process.stdout.fileno(), 4096)):
                told[kind] = (stream, data)
        assert told[FrameKind.DATA] == (1, b"HELLO")
        process.stdin.close()
        assert process.wait(30) == 0
    strange = run(bench, steps[0], EntryWanted(port=1))
    assert b"no process of the task listens on port 1" in strange.stderr


def test_a_terminal_reaches_the_task_and_ends_with_it(bench):
    step = make_step("t", TaskTemplate(command=("sh", "-c", "echo up; sleep 1000")))
    began(bench, step)
    screen = Terminal(bench.engine.entry(step.step, EntryWanted(terminal="vt100")))
    screen.type(b"tty; echo $TERM is $((1+1))\n")
    screen.expect(b"/dev/pts/")
    screen.expect(b"vt100 is 2")
    screen.type(b"sh -c 'echo rea\"\"dy; exec cat'\n")
    screen.expect(b"ready")
    screen.type(b"\x03")
    screen.expect(b"^C")
    screen.expect(b"\n")  # what is typed before the shell is back is dropped
    screen.type(b"echo st''ill here\n")
    screen.expect(b"still here")
    screen.type(b"exit 9\n")
    assert screen.process.wait(30) == 9
    screen.close()
    bench.engine.stop(step.step, 0)
    wait_for(bench, step.step, TaskPhase.EXITED)
    with pytest.raises(NotFound):
        bench.engine.entry(step.step, EntryWanted())


def test_an_element_of_an_array_is_entered_by_a_number_of_its_own(bench):
    task = TaskTemplate(command=("sh", "-c", "echo up; sleep 1000"))
    steps = elements(3, task, nodes=("node-1",))
    bench.engine.start_many(steps)
    for step in steps:
        wait_for(bench, step.step, TaskPhase.RUNNING)
        done = run(bench, step, EntryWanted(command=("sh", "-c", "echo $MOULIN_ARRAY_INDEX")))
        assert (done.returncode, done.stdout) == (0, b"%d\n" % step.unit), done.stderr
    bench.engine.stop(steps[1].step, 0)
    wait_for(bench, steps[1].step, TaskPhase.EXITED)
    with pytest.raises(NotFound):
        bench.engine.entry(steps[1].step, EntryWanted())


def test_over_rest_there_is_no_way_in(bench):
    step = make_step("r", TaskTemplate(command=("sh", "-c", "echo up; sleep 1000")))
    began(bench, step)
    bench.engine._cluster.door = None
    with pytest.raises(EngineRefused, match="over REST"):
        bench.engine.entry(step.step, EntryWanted())
