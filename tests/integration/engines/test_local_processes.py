"""The local engine's hold on process trees: one start, whole ends, adoption, no survivors."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from moulin.domain.observation import TaskPhase
from moulin.domain.words import moment
from moulin.domain.workload import TaskTemplate
from moulin.engines.local.engine import LocalEngine
from moulin.engines.task.shim import descendants as children
from moulin.engines.task.shim import stat_fields
from moulin.engines.task.spool import step_files
from tests.conformance.engine_bench import (
    LocalBench,
    RealClock,
    make_step,
    phase,
    wait_for,
    wait_until,
)

ANOTHER_PROCESS = """
import os, signal, sys
from pathlib import Path
from moulin.domain.workload import TaskTemplate
from tests.conformance.engine_bench import LocalBench, make_step
from moulin.engines.local.engine import LocalEngine
from moulin.engines.local.cgroup import find_cgroup_base
from tests.conformance.engine_bench import RealClock, nodes_of_this_machine
data_dir, script, is_killed = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "killed"
engine = LocalEngine(data_dir, clock=RealClock(), nodes=nodes_of_this_machine())
step = make_step("a", TaskTemplate(command=("sh", "-c", script)))
sys.stdin.readline()
print(*{engine.start(step) for _ in range(5)}, sep="\\n", flush=True)
if is_killed:
    os.kill(os.getpid(), signal.SIGKILL)
"""


SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class ShiftedClock:
    """The machine's clock as it will be later."""

    later_s: int

    def now_ns(self) -> int:
        return time.time_ns() + self.later_s * SECOND_NS


def another_process(data_dir, script, mode="lives"):
    return subprocess.Popen(
        [sys.executable, "-c", ANOTHER_PROCESS, str(data_dir), script, mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def shell(script: str) -> TaskTemplate:
    return TaskTemplate(command=("sh", "-c", script))


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def read_pids(directory: Path, count: int) -> list[int]:
    """Wait for `count` processes to have written their pid, one file each."""

    def found():
        return [file for file in directory.glob("*.pid") if file.read_text().strip()]

    wait_until(lambda: len(found()) == count)
    return [int(file.read_text()) for file in found()]


def family(directory: Path, *, last: str) -> TaskTemplate:
    """A tree whose members do not want to end: deaf ones, and one in a session of its own."""
    deaf = f"trap '' TERM; echo $$ > {directory}/NAME.pid; while :; do sleep 1; done"
    child = deaf.replace("NAME", "child")
    orphan = deaf.replace("NAME", "orphan")
    return shell(
        f"""sh -c "{child.replace("$", chr(92) + "$")}" &
        (setsid sh -c "{orphan.replace("$", chr(92) + "$")}" &)
        while [ ! -s {directory}/child.pid ] || [ ! -s {directory}/orphan.pid ]; do sleep 0.01; done
        echo $$ > {directory}/first.pid; {last}"""
    )


def test_many_processes_start_a_step_once(bench, tmp_path):
    effects = tmp_path / "effects" / "all"
    starters = [another_process(tmp_path, f"echo ran >> {effects}; sleep 1") for _ in range(3)]
    answers = set()
    for starter in starters:
        starter.stdin.write("\n")
        starter.stdin.flush()
    for starter in starters:
        answers.update(starter.communicate()[0].splitlines())
        assert starter.returncode == 0
    step = make_step("a", shell("exit 1"))
    assert answers == {str(bench.engine.start(step))}
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    assert effects.read_text() == "ran\n"


def test_killing_the_control_plane_kills_no_task(bench, tmp_path):
    effects, gate = tmp_path / "effects" / "all", tmp_path / "gate"
    script = f"while [ ! -e {gate} ]; do sleep 0.01; done; echo went on > {effects}; exit 9"
    starter = another_process(tmp_path, script, "killed")
    starter.communicate("\n")
    assert starter.returncode == -signal.SIGKILL
    step = make_step("a", shell("exit 1"))
    assert phase(bench, step.step) is TaskPhase.RUNNING
    gate.touch()
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 9
    assert effects.read_text() == "went on\n"


def test_a_start_leaves_this_process_no_child(bench):
    step = make_step("a", bench.program(seconds=1000))
    claim = bench.engine.start(step)
    parent = Path(f"/proc/{claim.pid}/stat").read_text().rpartition(")")[2].split()[1]
    assert int(parent) != os.getpid()
    session = os.getsid(claim.pid)
    assert session not in {os.getsid(0), 0}


def test_a_stop_ends_the_whole_tree(bench, tmp_path):
    step = make_step("a", family(tmp_path, last="trap '' TERM; while :; do sleep 1; done"))
    bench.engine.start(step)
    pids = read_pids(tmp_path, 3)
    bench.engine.stop(step.step, 1)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 137
    assert [pid for pid in pids if is_alive(pid)] == []


def test_what_the_first_process_leaves_behind_ends_with_it(bench, tmp_path):
    step = make_step("a", family(tmp_path, last="exit 4"))
    bench.engine.start(step)
    pids = read_pids(tmp_path, 3)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 4
    assert [pid for pid in pids if is_alive(pid)] == []


def test_grace_belongs_to_the_tree_not_to_its_first_shell(bench, tmp_path):
    """`sh -c` dies of TERM at once; the program below it may still save its work."""
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    child = f"trap 'sleep 0.3; echo all > {saved}; exit 0' TERM; touch {ready}; while :; do sleep 0.05; done"
    step = make_step("a", shell(f'sh -c "{child}"; true'))
    bench.engine.start(step)
    wait_until(ready.exists)
    bench.engine.stop(step.step, 60)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 143
    assert saved.read_text() == "all\n"


def test_a_stop_is_carried_out_though_the_engine_died_after_asking(bench, tmp_path):
    """Only the request on disk is left; the shim looks for it by itself."""
    step = make_step("a", bench.program(seconds=1000))
    bench.engine.start(step)
    Path(step_files(tmp_path / "spool", step.step).stop).write_text("0")
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 137


def test_a_later_stop_can_only_shorten_the_grace(bench):
    step = make_step("a", bench.program(seconds=1000, ignores_term=True))
    bench.engine.start(step)
    wait_until(lambda: bench.runs(step.step) == 1)
    bench.engine.stop(step.step, 100_000)
    bench.engine.stop(step.step, 0)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 137


def test_a_killed_shim_leaves_nothing_and_the_step_is_gone(bench, tmp_path):
    step = make_step("a", family(tmp_path, last="while :; do sleep 1; done"))
    claim = bench.engine.start(step)
    pids = read_pids(tmp_path, 3)
    os.kill(claim.pid, signal.SIGKILL)
    seen = wait_for(bench, step.step, TaskPhase.GONE)
    assert [pid for pid in pids if is_alive(pid)] == []
    assert "shim died" in seen.evidence
    bench.renew()
    assert phase(bench, step.step) is TaskPhase.GONE
    assert bench.engine.start(step) == claim
    assert phase(bench, step.step) is TaskPhase.GONE


def test_asking_the_shim_itself_to_end_ends_the_task_in_order(bench):
    step = make_step("a", bench.program(seconds=1000))
    claim = bench.engine.start(step)
    wait_until(lambda: bench.runs(step.step) == 1)
    os.kill(claim.pid, signal.SIGTERM)
    seen = wait_for(bench, step.step, TaskPhase.EXITED)
    assert (seen.exit_code, seen.evidence) == (143, "shim was asked to end")


def test_a_changed_boot_id_is_evidence_of_an_end(bench: LocalBench):
    step = make_step("a", bench.program(seconds=1000))
    claim = bench.engine.start(step)
    rebooted = [replace(node, boot_id="another") for node in bench.nodes]
    later = LocalEngine(bench.directory, clock=RealClock(), nodes=rebooted)
    seen = later.observe([step.step])[0]
    # In truth nothing was restarted: end the task in order.
    os.kill(claim.pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(claim.pid))
    assert (seen.phase, seen.exit_code) == (TaskPhase.GONE, None)
    assert "boot id" in seen.evidence


@pytest.mark.parametrize(
    ("written_s", "booted_s", "ended_s"),
    [
        (40, 0, 40),  # nobody knows when the machine came back: its last sign of life counts
        (40, 90, 40),
        (120, 90, 90),  # a copied spool has later times; nothing lived past the new boot
        (-10, 90, 0),  # a clock that was set back: it lived when it started
    ],
)
def test_a_task_lost_in_a_reboot_ended_when_it_was_last_known_to_live(
    bench: LocalBench, written_s, booted_s, ended_s
):
    step = make_step("a", bench.program(seconds=1000))
    claim = bench.engine.start(step)
    started_ns = bench.engine.observe([step.step])[0].started_at_ns
    files = step_files(bench.directory / "spool", step.step)
    wait_until(lambda: Path(files.log).exists() and Path(files.usage).exists())
    os.kill(claim.pid, signal.SIGSTOP)
    wait_until(lambda: stat_fields(claim.pid)[0] == b"T")
    Path(files.usage).write_bytes(b"600000000000 77 600000000000 77\n")
    for path in (files.usage, files.log):
        os.utime(path, ns=(0, started_ns + written_s * SECOND_NS))
    later = LocalEngine(
        bench.directory,
        clock=ShiftedClock(3600),
        nodes=[replace(node, boot_id="another") for node in bench.nodes],
        booted_at_ns=started_ns + booted_s * SECOND_NS if booted_s else 0,
    )
    seen = later.observe([step.step])[0]
    # In truth nothing was restarted: end the task in order.
    os.kill(claim.pid, signal.SIGCONT)
    os.kill(claim.pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(claim.pid))
    assert (seen.phase, seen.cpu_ns) == (TaskPhase.GONE, 600 * SECOND_NS)
    assert seen.ended_at_ns - started_ns == ended_s * SECOND_NS
    assert f"last known to live on {moment(seen.ended_at_ns)}" in seen.evidence


def test_a_task_that_outlived_its_shim_ended_when_it_was_found(bench, tmp_path):
    step = make_step("a", family(tmp_path, last="while :; do sleep 1; done"))
    claim = bench.engine.start(step)
    read_pids(tmp_path, 3)
    survivor = int((tmp_path / "child.pid").read_text())
    os.kill(claim.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(claim.pid))
    assert is_alive(survivor)
    looked_ns = time.time_ns()
    assert wait_for(bench, step.step, TaskPhase.GONE).ended_at_ns >= looked_ns


def test_an_engine_that_died_before_its_shim_ran_can_start_again(bench, tmp_path):
    step = make_step("a", bench.program(exit_code=6))
    files = step_files(tmp_path / "spool", step.step)
    Path(files.directory).mkdir(parents=True)
    Path(files.spec).write_bytes(b"argv\0half")
    assert phase(bench, step.step) is TaskPhase.ABSENT
    bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 6
    assert bench.runs(step.step) == 1


def test_a_start_under_way_elsewhere_is_not_called_absent(bench, tmp_path):
    step = make_step("a", bench.program())
    files = step_files(tmp_path / "spool", step.step)
    Path(files.directory).mkdir(parents=True)
    holder = subprocess.Popen(["flock", files.directory, "sh", "-c", "echo held; read line"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert phase(bench, step.step) is TaskPhase.STARTING
    holder.communicate(b"\n")
    assert phase(bench, step.step) is TaskPhase.ABSENT


def test_a_spool_that_cannot_be_read_proves_nothing(bench, tmp_path):
    running = make_step("a", bench.program(seconds=1000))
    unknown = make_step("b", bench.program())
    bench.engine.start(running)
    spool, away = tmp_path / "spool", tmp_path / "away"
    spool.rename(away)
    spool.mkdir()
    seen = bench.engine.observe([running.step, unknown.step])
    spool.rmdir()
    away.rename(spool)
    assert {found.phase for found in seen} == {TaskPhase.UNREACHABLE}
    assert phase(bench, running.step) is TaskPhase.RUNNING


def test_a_damaged_record_proves_nothing_and_hides_nothing_else(bench, tmp_path):
    damaged, sound = (make_step(name, bench.program(exit_code=3)) for name in "ab")
    for step in (damaged, sound):
        bench.engine.start(step)
        wait_for(bench, step.step, TaskPhase.EXITED)
    Path(step_files(tmp_path / "spool", damaged.step).exit).write_bytes(b"phase exi")
    bench.renew()
    seen = bench.engine.observe([damaged.step, sound.step])
    assert [found.phase for found in seen] == [TaskPhase.UNREACHABLE, TaskPhase.EXITED]


def test_a_full_disk_delays_the_record_of_an_end_but_does_not_lose_it(bench, tmp_path):
    """A directory in the way of the temporary file stands for a disk without room."""
    gate = tmp_path / "gate"
    step = make_step("a", shell(f"while [ ! -e {gate} ]; do sleep 0.01; done; exit 8"))
    claim = bench.engine.start(step)
    obstacle = Path(step_files(tmp_path / "spool", step.step).exit + f".{claim.pid}")
    obstacle.mkdir()
    gate.touch()
    wait_until(lambda: not [pid for pid in children(claim.pid) if is_alive(pid)])
    assert phase(bench, step.step) is TaskPhase.RUNNING
    obstacle.rmdir()
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 8
