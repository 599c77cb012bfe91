"""Tasks in real containers keep the contract of tasks without: what reaches them and what they leave."""

import contextlib
import os
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused
from moulin.domain.needs import NEED_BY_FORM, Need
from moulin.domain.observation import TaskPhase
from moulin.domain.plan import StartStep
from moulin.domain.workload import TaskTemplate
from moulin.engines.local.cgroup import find_cgroup_base
from moulin.engines.local.engine import LOOK_NS, LocalEngine
from moulin.engines.task.shim import TOOL_ENDING_S, is_contained
from tests.conformance.engine_bench import (
    ENDED,
    ImageBench,
    ManualClock,
    RayBench,
    RealClock,
    make_step,
    nodes_of_this_machine,
    wait_for,
    wait_until,
)
from tests.containers import CONTAINER_TOOLS


@pytest.fixture(params=CONTAINER_TOOLS)
def bench(request, tmp_path):
    containers = request.getfixturevalue(request.param)
    made = ImageBench(tmp_path, None, containers=containers)
    yield made
    made.close()
    wait_until(lambda: not below(made))


def shell(bench, script, **fields) -> TaskTemplate:
    effects = bench.directory / "effects"
    task = TaskTemplate(command=("sh", "-c", script), image=bench.containers.image)
    return replace(task, workdir=str(effects), **fields)


def run(bench, task, **fields):
    step = make_step("a", task, **fields)
    bench.engine.start(step)
    seen = wait_for(bench, step.step, TaskPhase.EXITED)
    return seen, bench.engine.logs(step.step, 0, 1 << 20).data.decode()


def test_the_file_system_is_the_images_and_the_directories_are_ours(bench):
    script = (
        'cat /etc/made-here; pwd; touch here "$MOULIN_ATTEMPT_DIR/a" "$MOULIN_CHECKPOINT_DIR/b"'
    )
    seen, log = run(bench, shell(bench, script))
    effects = bench.directory / "effects"
    assert (seen.exit_code, log) == (0, f"only in the image\n{effects}\n")
    assert (effects / "here").stat().st_uid == os.geteuid()
    assert [path.name for path in (bench.directory / "spool").rglob("[ab]")]


def test_variables_arrive_as_they_are_and_none_is_in_an_argv(bench):
    env = {"PATH": "/bin:/not/here", "LINES": "one\ntwo", "SECRET": "s3cr3t", "LD_PRELOAD": ""}
    script = (
        'echo "$PATH|$LINES|$MOULIN_STEP_ID|$RANK|$LD_PRELOAD"; '
        "cat /proc/[0-9]*/cmdline > all 2>/dev/null; touch up; until [ -e go ]; do sleep 0.02; done"
    )
    step = make_step("a", shell(bench, script, env=env))
    bench.engine.start(step)
    effects = bench.directory / "effects"
    wait_until((effects / "up").exists)
    here = b"".join(file(pid, "cmdline") for pid in below(bench))
    (effects / "go").touch()
    wait_for(bench, step.step, TaskPhase.EXITED)
    log = bench.engine.logs(step.step, 0, 1 << 20).data.decode()
    assert log == f"/bin:/not/here|one\ntwo|{step.step}|0|\n"
    assert b"sh\0-c\0" in here
    assert b"s3cr3t" not in here + (effects / "all").read_bytes()


def test_a_stop_tells_every_process_of_the_program_once(bench):
    script = (
        "trap 'echo told' TERM; (trap 'echo child told; exit' TERM; touch up; while :; do sleep 0.05; done) & "
        "wait; wait; exit 9"
    )
    step = make_step("a", shell(bench, script))
    bench.engine.start(step)
    wait_until((bench.directory / "effects" / "up").exists)
    bench.engine.stop(step.step, 30)
    seen = wait_for(bench, step.step, TaskPhase.EXITED)
    log = bench.engine.logs(step.step, 0, 1 << 20).data.decode()
    told = sorted(line for line in log.splitlines() if "told" in line)
    assert (seen.exit_code, told) == (9, ["child told", "told"])


def test_a_stop_while_it_starts_ends_it(bench):
    step = make_step("a", shell(bench, "sleep 1000"))
    bench.engine.start(step)
    bench.engine.stop(step.step, 30)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 128 + signal.SIGTERM


def test_cpus_network_and_user_are_those_of_a_task_without_image(bench):
    script = "cat /proc/self/status; ls -l /proc/self/ns/net; id -u"
    _, log = run(bench, shell(bench, script))
    cpus = ",".join(str(cpu) for cpu in bench.nodes[0].cpu_ids)
    lines = dict(line.split(":\t", 1) for line in log.splitlines() if ":\t" in line)
    assert lines["Cpus_allowed_list"].replace("-", ",") in (cpus, cpus.replace("-", ","))
    assert str(Path("/proc/self/ns/net").readlink()) in log
    assert log.splitlines()[-1] == str(os.geteuid())


def test_too_much_memory_ends_the_program_and_not_the_tool(bench):
    task = shell(bench, "dd if=/dev/zero of=/dev/null bs=200M count=1000000")
    step = make_step("a", task, memory_bytes=60_000_000)
    bench.engine.start(step)
    seen = wait_for(bench, step.step, TaskPhase.EXITED)
    assert seen.exit_code == 128 + signal.SIGKILL
    assert "memory limit of 60000000 bytes exceeded" in seen.evidence


def test_a_program_that_is_not_in_the_image_ends_as_in_a_shell(bench):
    task = TaskTemplate(command=("no-such-program",), image=bench.containers.image)
    seen, log = run(bench, task)
    assert seen.exit_code in (127, 255)
    assert "no-such-program" in log or "No such file" in log


@pytest.mark.parametrize("has_cgroup", [False, True])
def test_the_shims_death_leaves_no_process_and_no_container(bench, has_cgroup):
    bench.cgroup = find_cgroup_base() if has_cgroup else None
    bench.renew()
    step = make_step("a", shell(bench, "touch up; sleep 1000"))
    claim = bench.engine.start(step)
    wait_until((bench.directory / "effects" / "up").exists)
    os.kill(claim.pid, signal.SIGKILL)
    assert wait_for(bench, step.step, *ENDED).phase is TaskPhase.GONE
    wait_until(lambda: not below(bench))
    if bench.containers.is_podman:
        wait_until(lambda: bench.containers.left() == [])


def test_a_directory_is_an_image_and_stays_as_it_was(podman, tmp_path):
    made = ImageBench(
        tmp_path, find_cgroup_base(), containers=replace(podman, image=podman.directory)
    )
    before = sorted(path.name for path in Path(podman.directory).rglob("*"))
    seen, log = run(made, shell(made, "cat /etc/made-here; touch /left"))
    assert (seen.exit_code, log) == (0, "only in the image\n")
    assert sorted(path.name for path in Path(podman.directory).rglob("*")) == before
    made.close()


@pytest.mark.ray
def test_a_server_under_ray_runs_an_image(ray_cluster, podman, tmp_path):
    words = " ".join(f"{name}={shlex.quote(word)}" for name, word in podman.environment.items())
    folder = ray_cluster.folder / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "podman").write_text(f'#!/bin/sh\n{words} exec podman "$@"\n')
    (folder / "podman").chmod(0o755)
    made = RayBench(tmp_path, ray_cluster)
    task = replace(made.shell("cat /etc/made-here; exit 6"), image=podman.image)
    step = make_step("a", task, nodes=("node-1",))
    try:
        made.engine.start(step)
        assert wait_for(made, step.step, TaskPhase.EXITED).exit_code == 6
        assert made.engine.logs(step.step, 0, 1000).data == b"only in the image\n"
    finally:
        (folder / "podman").unlink()
        made.close()


PROGRAMS = {
    (): "needs a container tool, and there is none",
    ("podman",): "needs crun.* beside Podman",
    ("podman", "crun", "catatonit"): "is a SIF file, which Podman",
}


@pytest.mark.parametrize("programs", PROGRAMS, ids=len)
def test_without_a_tool_it_is_refused_with_what_to_install(programs, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in programs:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    made = LocalEngine(
        tmp_path,
        clock=RealClock(),
        nodes=nodes_of_this_machine(),
        environment={"PATH": str(folder)},
    )
    step = make_step("a", TaskTemplate(command=("true",), image="/images/mill.sif"))
    with pytest.raises(EngineRefused, match=PROGRAMS[programs]) as refused:
        made.start(step)
    assert "install" in refused.value.hint
    [node] = made.capacity()
    assert Need.SIF_IMAGE in node.lacks
    assert (Need.REGISTRY_IMAGE in node.lacks) is (len(programs) < 3)
    assert made.observe([step.step])[0].phase is TaskPhase.ABSENT


def test_what_is_installed_counts_without_a_restart(tmp_path):
    folder, clock = tmp_path / "bin", ManualClock()
    folder.mkdir()
    made = LocalEngine(
        tmp_path, clock=clock, nodes=nodes_of_this_machine(), environment={"PATH": str(folder)}
    )
    [before] = made.capacity()
    assert set(NEED_BY_FORM.values()) <= set(before.lacks)
    (folder / "apptainer").write_text("#!/bin/sh\n")
    (folder / "apptainer").chmod(0o755)
    assert made.capacity() == (before,)
    clock.at_ns += LOOK_NS
    [after] = made.capacity()
    assert not set(NEED_BY_FORM.values()) & set(after.lacks)


def below(bench) -> list[int]:
    """Return every process that names the bench's directory in its words or variables."""
    mark = str(bench.directory).encode()
    numbers = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    return [
        pid
        for pid in numbers
        if pid != os.getpid() and mark in file(pid, "cmdline") + file(pid, "environ")
    ]


def file(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def test_a_stop_before_the_program_has_begun_leaves_no_container_behind(bench):
    """Podman waits for ever for a program whose place `crun` had made, and that was killed there."""
    if not bench.containers.is_podman:
        pytest.skip("Apptainer makes no place before it begins the program")
    step, tool = held_before_it_begins(bench)
    # Neither is what is in the making told or killed before Podman lets it begin.
    bench.engine.stop(step.step, 0)
    time.sleep(0.3)
    for pid in tool:
        os.kill(pid, signal.SIGCONT)
    begin_s = time.monotonic()
    wait_for(bench, step.step, *ENDED)
    assert time.monotonic() - begin_s < TOOL_ENDING_S / 2


def held_before_it_begins(bench) -> tuple[StartStep, list[int]]:
    """Return a step whose Podman is held, and the processes held of it, before its program begins.

    That moment is short: on a busy machine it may pass between two looks, and then another is started.
    """

    def tools() -> list[int]:
        return [pid for pid in below(bench) if file(pid, "comm") == b"podman\n"]

    for number in range(20):
        step = make_step(f"a{number}", shell(bench, "sleep 1000"))
        bench.engine.start(step)
        wait_until(lambda: bool(tools()))
        tool, place, until_s = tools(), 0, time.monotonic() + 3
        while not place and time.monotonic() < until_s:
            place = place_of(bench)
        for pid in tool:
            os.kill(pid, signal.SIGSTOP)
        if place and not is_contained(place):
            return step, tool
        for pid in tool:
            os.kill(pid, signal.SIGCONT)
        bench.engine.stop(step.step, 0)
        wait_for(bench, step.step, *ENDED)
    pytest.fail("the moment before a program begins was never seen")


def place_of(bench) -> int:
    """Return the process of `crun` below the root of a container of this bench, 0 for none."""
    mark, here = str(bench.containers.folder).encode(), Path("/").stat()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit() or (entry / "comm").read_bytes() != b"crun\n":
                continue
            there = (entry / "root").stat()
            is_other = (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)
            if is_other and mark in (entry / "cmdline").read_bytes():
                return int(entry.name)
    return 0
