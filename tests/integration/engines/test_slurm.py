"""The Slurm engine against a real Slurm: what other engines cannot have, judged by effects."""

import contextlib
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.ids import NodeId
from moulin.domain.observation import SEEN_PHASES, TaskPhase
from moulin.domain.workload import EndpointSpec, Resources, TaskTemplate
from moulin.engines.slurm.evidence import RECORD_S
from moulin.engines.task.shim import BEGUN_BEFORE
from moulin.engines.task.spool import step_files
from tests.conformance.engine_bench import (
    ENDED,
    SlurmBench,
    make_step,
    phase,
    wait_for,
    wait_until,
)
from tests.integration.engines.delegated_bench import places_of

pytestmark = pytest.mark.slurm


@pytest.fixture
def bench(tmp_path, slurm_cluster):
    made = SlurmBench(tmp_path, slurm_cluster)
    # What another test did to a node is over, as this engine sees it.
    wait_until(
        lambda: all(n.is_reachable and not n.closed_because for n in made.engine.capacity()),
        made.pause,
    )
    yield made
    made.close()


def gang(name, script, nodes=("node-2", "node-0", "node-3"), **more):
    """Return the steps of a gang, each saying what it was given."""
    task = TaskTemplate(command=("sh", "-c", script))
    return [make_step(name, task, rank=rank, nodes=nodes, **more) for rank in range(len(nodes))]


def jobs_named(cluster, name):
    return cluster.run("squeue", "-h", "--states=all", f"--name={name}", "-o", "%i").split()


def log_of(bench, step):
    return bench.engine.logs(step.step, 0, 1 << 20).data.decode()


def test_a_gang_is_one_job_with_ranks_in_the_order_of_the_plan(bench, slurm_cluster):
    steps = gang("g", 'echo "$RANK $SLURM_PROCID $SLURMD_NODENAME $WORLD_SIZE"; exit $RANK')
    claims = {bench.engine.start(step) for step in steps[:2]}
    assert phase(bench, steps[0].step) is TaskPhase.ABSENT  # nothing runs before all are on record
    claims.add(bench.engine.start(steps[2]))
    ends = [wait_for(bench, step.step, TaskPhase.EXITED) for step in steps]
    assert len(claims) == 1
    assert len(jobs_named(slurm_cluster, steps[0].attempt)) == 1
    assert [end.exit_code for end in ends] == [0, 1, 2]
    assert [log_of(bench, step) for step in steps] == [
        "0 0 node-2 3\n",
        "1 1 node-0 3\n",
        "2 2 node-3 3\n",
    ]


def test_a_gang_is_told_once_to_end(bench):
    told = bench.directory / "told"
    script = f"trap 'echo $RANK >> {told}; sleep 0.5; exit 4' TERM; echo up; while :; do sleep 0.05; done"
    steps = gang("g", script, nodes=("node-0", "node-1"))
    for step in steps:
        bench.engine.start(step)
    wait_until(lambda: all(log_of(bench, step) == "up\n" for step in steps), bench.pause)
    for step in steps:
        bench.engine.stop(step.step, 30)
        bench.engine.stop(step.step, 30)
    assert [wait_for(bench, s.step, TaskPhase.EXITED).exit_code for s in steps] == [4, 4]
    assert sorted(told.read_text().split()) == ["0", "1"]


def test_a_time_limit_that_somebody_changes_in_slurm_is_seen(bench, slurm_cluster):
    task, model = TaskTemplate(command=("sleep", "1000")), EndpointSpec(model="m")
    step = make_step("a", task, endpoint=model)  # with what the partition gives
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.RUNNING)
    [job] = jobs_named(slurm_cluster, step.attempt)

    def wall_s():
        """Return when Slurm ends it, counted from its start there, once a change tells it."""
        told.extend(seen.wall_ns // 10**9 for seen in bench.engine.changes())
        return told[-1] - started_s() if told and told[-1] else 0

    def started_s():
        words = slurm_cluster.run("squeue", "-h", "-j", job, "-o", "%S").strip()
        return int(datetime.fromisoformat(words).timestamp())

    told: list[int] = []
    wait_until(lambda: wall_s() == 24 * 3600, bench.pause)
    for minutes in (30, 90):
        slurm_cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        wait_until(lambda: wall_s() == minutes * 60, bench.pause)  # noqa: B023 - waited for here
        assert bench.engine.observe([step.step])[0].wall_ns == told[-1] * 10**9
        assert bench.engine.standings([step.step])[step.step].wall_ns == told[-1] * 10**9
    slurm_cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")
    wait_until(lambda: bench.engine.observe([step.step])[0].wall_ns == 0, bench.pause)
    assert len(told) <= 5  # what has not changed is not told


def test_a_submission_whose_number_was_lost_is_found_by_its_name(bench, slurm_cluster):
    step = make_step("a", bench.program(seconds=3))
    bench.engine.start(step)
    files = step_files(bench.directory / "spool", step.step)
    (Path(files.attempt_directory) / "job").unlink()
    bench.renew()
    assert phase(bench, step.step) in {TaskPhase.UNREACHABLE, *SEEN_PHASES}
    bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    assert bench.runs(step.step) == 1
    assert len(jobs_named(slurm_cluster, step.attempt)) == 1


def test_of_two_jobs_for_one_attempt_one_runs_it(bench, slurm_cluster):
    step = make_step("a", bench.program(seconds=1))
    bench.engine.start(step)
    job = jobs_named(slurm_cluster, step.attempt)[0]
    script = slurm_cluster.run("scontrol", "write", "batch_script", job, "-")
    again = bench.directory / "again.sh"
    again.write_text(f"{script}\n")
    second = slurm_cluster.run("sbatch", "--parsable", "--output=/dev/null", str(again))
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    slurm_cluster.wait_for(
        lambda: "COMPLETED" in slurm_cluster.run("scontrol", "show", "job", second), "no end"
    )
    assert bench.runs(step.step) == 1


def test_a_job_that_slurm_runs_once_more_runs_nothing_and_is_no_success(bench, slurm_cluster):
    step = make_step("a", bench.program(seconds=0.2))
    bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    job = jobs_named(slurm_cluster, step.attempt)[0]
    script = slurm_cluster.run("scontrol", "write", "batch_script", job, "-")
    again = bench.directory / "again.sh"
    # With its former number, as from a controller that crashed and remembers an earlier time.
    again.write_text(f"{script}\n".replace("#!/bin/sh\n", f"#!/bin/sh\nSLURM_JOB_ID={job}\n", 1))
    second = slurm_cluster.run("sbatch", "--parsable", "--output=/dev/null", str(again))
    slurm_cluster.wait_for(
        lambda: (
            f"ExitCode={BEGUN_BEFORE}:0" in slurm_cluster.run("scontrol", "show", "job", second)
        ),
        "no end",
    )
    assert bench.runs(step.step) == 1


def test_a_controller_that_is_down_makes_tasks_unreachable_and_ends_none(bench, slurm_cluster):
    go = bench.directory / "go"
    script = f"echo ran >> {bench.directory}/effects/$MOULIN_STEP_ID; while [ ! -e {go} ]; do sleep 0.1; done"
    step = make_step("a", TaskTemplate(command=("sh", "-c", script)))
    late = make_step("b", bench.program())
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.RUNNING)
    slurm_cluster.stop_controller()
    try:
        wait_for(bench, step.step, TaskPhase.UNREACHABLE)
        with pytest.raises(EngineUnavailable):
            bench.engine.capacity()
        with pytest.raises(EngineUnavailable):
            bench.engine.start(late)
    finally:
        slurm_cluster.start_controller()
        slurm_cluster.wait_for(
            lambda: "unknown" not in " ".join(slurm_cluster.states()), "nodes are not known again"
        )
    go.touch()
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    assert bench.runs(step.step) == 1
    wait_until(lambda: starts(bench, late), bench.pause)
    wait_for(bench, late.step, TaskPhase.EXITED)
    assert bench.runs(late.step) == 1


def starts(bench, step) -> bool:
    try:
        bench.engine.start(step)
    except EngineUnavailable:
        return False
    return True


def test_a_node_that_slurm_calls_down_is_evidence(bench, slurm_cluster):
    step = make_step("a", bench.program(seconds=1000), nodes=("node-3",))
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.RUNNING)
    slurm_cluster.kill_node("node-3")
    down = ("scontrol", "update", "NodeName=node-3", "State=DOWN", "Reason=power off")
    slurm_cluster.run(*down)
    try:
        # Its slurmd is dead, the task is not: a second one would run beside it.
        wait_for(bench, step.step, TaskPhase.UNREACHABLE)
        time.sleep(RECORD_S + 1)
        assert phase(bench, step.step) is TaskPhase.UNREACHABLE
        slurm_cluster.power_off("node-3")
        seen = wait_for(bench, step.step, *ENDED)
        assert (seen.phase, "NODE_FAIL" in seen.evidence) == (TaskPhase.GONE, True)
        slurm_cluster.run(*down)  # from 24.11 on a last word of the task took the node back
        wait_until(lambda: not capacity(bench)["node-3"].is_reachable, bench.pause)
        assert "power off" in capacity(bench)["node-3"].closed_because
    finally:
        slurm_cluster.start_node("node-3")
        slurm_cluster.wait_for(lambda: slurm_cluster.is_up("node-3"), "still down")


def capacity(bench):
    return {node.node: node for node in bench.engine.capacity()}


def test_a_drained_node_is_closed_with_its_reason_and_keeps_its_tasks(bench, slurm_cluster):
    step = make_step("a", bench.program(seconds=1.5), nodes=("node-1",))
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.RUNNING)
    slurm_cluster.run("scontrol", "update", "NodeName=node-1", "State=DRAIN", "Reason=bad fan")
    try:
        wait_until(lambda: bool(capacity(bench)["node-1"].closed_because), bench.pause)
        node = capacity(bench)["node-1"]
        assert "drain" in node.closed_because
        assert "bad fan" in node.closed_because
        assert node.is_reachable
        assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    finally:
        slurm_cluster.run("scontrol", "update", "NodeName=node-1", "State=RESUME")
    wait_until(lambda: not capacity(bench)["node-1"].closed_because, bench.pause)


def test_a_partition_that_takes_no_jobs_is_closed_and_refuses_none_for_good(bench, slurm_cluster):
    update = ("scontrol", "update", "PartitionName=batch")
    step = make_step("a", bench.program())
    assert not capacity(bench)["node-0"].closed_because
    slurm_cluster.run(*update, "State=DRAIN")
    try:
        with pytest.raises(EngineUnavailable, match="inactive or drain"):
            bench.engine.start(step)
        wait_until(lambda: bool(capacity(bench)["node-0"].closed_because), bench.pause)
        assert {node.closed_because for node in bench.engine.capacity()} == {
            "partition batch is DRAIN and takes no jobs"
        }
    finally:
        slurm_cluster.run(*update, "State=UP")
    wait_until(lambda: not capacity(bench)["node-0"].closed_because, bench.pause)

    def is_taken():
        with contextlib.suppress(EngineUnavailable):
            return bool(bench.engine.start(step))

    wait_until(is_taken, bench.pause)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0


def test_what_has_no_limit_is_not_cut_by_a_default(bench, slurm_cluster):
    update = ("scontrol", "update", "PartitionName=batch")
    slurm_cluster.run(*update, "MaxTime=UNLIMITED", "DefaultTime=2")
    try:
        bench.renew()
        step = make_step("a", bench.program(seconds=1000))
        limited = replace(make_step("b", bench.program(seconds=1000)), time_limit_s=600)
        assert {node.time_limit_s for node in bench.engine.capacity()} == {0}
        for each in (step, limited):
            bench.engine.start(each)
        limits = [
            slurm_cluster.run("squeue", "-h", f"--name={each.attempt}", "-o", "%l")
            for each in (step, limited)
        ]
        assert limits[0] == "UNLIMITED"
        assert limits[1] != "UNLIMITED"
    finally:
        slurm_cluster.run("scontrol", "reconfigure")


def test_a_partition_that_gives_whole_nodes_says_so(bench, slurm_cluster):
    update = ("scontrol", "update", "PartitionName=batch")
    assert not capacity(bench)["node-0"].is_exclusive
    slurm_cluster.run(*update, "OverSubscribe=EXCLUSIVE")
    try:
        wait_until(lambda: capacity(bench)["node-0"].is_exclusive, bench.pause)
        step = make_step("a", bench.program(seconds=1000), nodes=("node-0",))
        words = ("--nodelist=node-2", "--output=/dev/null", "--wrap", "sleep 1000")
        slurm_cluster.run("sbatch", "--job-name=others", *words)
        bench.engine.start(step)
        wait_for(bench, step.step, TaskPhase.RUNNING)
        wait_until(lambda: bool(capacity(bench)["node-2"].taken_cpu_milli), bench.pause)
        wait_until(lambda: not capacity(bench)["node-0"].taken_cpu_milli, bench.pause)
    finally:
        slurm_cluster.run("scancel", "--name=others")
        for word in ("OverSubscribe=NO", "Exclusive=NO"):  # the second from 26.05 on
            slurm_cluster.run(*update, word)


def test_jobs_of_others_are_counted_and_never_touched(bench, slurm_cluster):
    before = capacity(bench)["node-2"]
    own = make_step("a", bench.program(seconds=1000), nodes=("node-2",))
    bench.engine.start(own)
    words = ("--nodelist=node-2", "--cpus-per-task=3", "--mem=1000", "--gres=gpu:2")
    job = slurm_cluster.run(
        *("sbatch", "--parsable", "--output=/dev/null", *words, "--wrap", "sleep 1000")
    )
    try:
        wait_until(lambda: capacity(bench)["node-2"].taken_cpu_milli == 3000, bench.pause)
        node = capacity(bench)["node-2"]
        assert (node.cpu_milli, node.accelerators) == (before.cpu_milli, before.accelerators)
        assert (node.taken_memory_bytes, node.taken_accelerators) == (1000 << 20, 2)
        assert bench.engine.steps() == (own.step,)
        bench.close()
        wait_for(bench, own.step, *ENDED)
        assert "RUNNING" in slurm_cluster.run("scontrol", "show", "job", job)
    finally:
        slurm_cluster.run("scancel", job)
    wait_until(lambda: capacity(bench)["node-2"].taken_cpu_milli == 0, bench.pause)


def test_a_task_sees_its_devices(bench):
    step = make_step("a", TaskTemplate(command=("sh", "-c", "echo $CUDA_VISIBLE_DEVICES")))
    wanted = Resources(accelerators=2, accelerator_class="H100")
    step = replace(step, devices=(1, 3), resources=wanted)
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.EXITED)
    assert log_of(bench, step) == "1,3\n"


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory_bytes=10**12),
        Resources(cpu_milli=8_001),
        Resources(accelerators=5),
    ],
)
def test_more_than_a_node_has_is_refused(bench, resources):
    step = replace(make_step("a", bench.program()), resources=resources)
    with pytest.raises(EngineRefused, match="more than node-0 has"):
        bench.engine.start(step)
    assert phase(bench, step.step) is TaskPhase.ABSENT


def test_what_slurm_will_never_take_is_refused_in_its_own_words(tmp_path, slurm_cluster):
    bench = SlurmBench(tmp_path, slurm_cluster, constraint="no-such-feature")
    step = make_step("a", bench.program())
    with pytest.raises(EngineRefused, match="Invalid feature specification"):
        bench.engine.start(step)
    bench.renew()
    assert phase(bench, step.step) is TaskPhase.ABSENT
    assert bench.engine.steps() == ()
    assert bench.runs(step.step) == 0


def test_a_job_that_an_administrator_cancels_has_ended(bench, slurm_cluster):
    # One process: Slurm signals children first, and a shell would go on before its turn came.
    step = make_step("a", TaskTemplate(command=("sleep", "1000")))
    bench.engine.start(step)
    wait_for(bench, step.step, TaskPhase.RUNNING)
    slurm_cluster.run("scancel", *jobs_named(slurm_cluster, step.attempt))
    seen = wait_for(bench, step.step, *ENDED)
    assert (seen.phase, seen.exit_code) == (TaskPhase.EXITED, 143)


def test_a_queued_job_that_is_stopped_never_runs(bench, slurm_cluster):
    blocker = make_step("a", bench.program(seconds=1000))
    blocker = replace(blocker, resources=Resources(cpu_milli=8000))
    waiting = replace(make_step("b", bench.program()), resources=Resources(cpu_milli=8000))
    bench.engine.start(blocker)
    wait_for(bench, blocker.step, TaskPhase.RUNNING)
    bench.engine.start(waiting)
    wait_until(lambda: "waits" in bench.engine.observe([waiting.step])[0].evidence, bench.pause)
    assert phase(bench, waiting.step) is TaskPhase.STARTING
    bench.engine.stop(waiting.step, 5)
    wait_for(bench, waiting.step, TaskPhase.ABSENT)
    assert bench.runs(waiting.step) == 0
    slurm_cluster.wait_for(
        lambda: (
            "CANCELLED"
            in slurm_cluster.run(
                "scontrol", "show", "job", *jobs_named(slurm_cluster, waiting.attempt)
            )
        ),
        "it is still queued",
    )


def test_changes_tell_each_phase_once(bench):
    step = make_step("a", bench.program(seconds=3, exit_code=3))
    assert bench.engine.changes() == ()
    bench.engine.start(step)
    told: list[TaskPhase] = []
    deadline_s = time.monotonic() + 30
    while TaskPhase.EXITED not in told and time.monotonic() < deadline_s:
        told.extend(seen.phase for seen in bench.engine.changes())
        time.sleep(0.05)
    # Slurm may have started it before anybody looked.
    assert told[-2:] == [TaskPhase.RUNNING, TaskPhase.EXITED]
    assert told[:-2] in ([], [TaskPhase.STARTING])
    bench.renew()
    assert [seen.phase for seen in bench.engine.changes()] == [TaskPhase.EXITED]


def test_a_delegated_pool_offers_places_and_slurm_chooses_the_nodes(tmp_path, slurm_cluster):
    bench = SlurmBench(tmp_path, slurm_cluster, is_delegated=True)
    places = places_of(bench.engine)
    assert places == tuple(NodeId(f"node-{index:05d}") for index in range(4))
    script = 'echo "$RANK of $WORLD_SIZE at $MASTER_ADDR"; echo $SLURMD_NODENAME >> ../nodes'
    steps = gang("g", script, nodes=(places[3], places[1]))
    for step in steps:
        bench.engine.start(step)
    for rank, step in enumerate(steps):
        assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
        assert log_of(bench, step) == f"{rank} of 2 at 127.0.0.1\n"
    files = step_files(Path(tmp_path) / "spool", steps[0].step)
    assert len(set((Path(files.attempt_directory) / "nodes").read_text().split())) == 2
