"""`#SBATCH` lines in a job's own words."""

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.sbatchfile import parse_sbatch
from moulin.domain.workload import After, AfterWhen


def script(*lines, shebang="#!/bin/bash -l", body="srun python train.py"):
    text = "\n".join((shebang, *(f"#SBATCH {line}" for line in lines), "", body, ""))
    return parse_sbatch(
        text, origin="train.sh", workdir="/scratch/ann", arguments=("x",), classes=("H100", "B300")
    )


def test_an_ordinary_script_asks_for_what_slurm_would_give():
    found = script(
        *("--job-name='my run'", "-N 4", "--ntasks-per-node=2 --cpus-per-task=8", "-t 1-12:30:00"),
        *("--mem=64G", "--gres=gpu:h100:8", "-p gpu,gpu-long", "--array=0-99%10"),
        "--export=ALL,SEED=7 # a comment",
    )
    spec = found.spec
    assert (spec.name, spec.nodes, spec.time_limit_s) == ("my-run", 4, 131_400)
    resources = spec.resources
    assert (resources.cpu_milli, resources.memory_bytes) == (16_000, 64 << 30)
    assert (resources.accelerator_class, resources.accelerators) == ("H100", 8)
    assert spec.where.zones == ("gpu", "gpu-long")
    assert spec.array is not None
    assert (spec.array.size, spec.array.at_most) == (100, 10)
    assert spec.task is not None
    assert spec.task.workdir == "/scratch/ann"
    assert spec.task.env["SEED"] == "7"
    assert (spec.task.env["SLURM_NTASKS"], spec.task.env["SLURM_CPUS_PER_TASK"]) == ("8", "8")
    assert found.notes == ()


def test_the_script_runs_by_its_own_shell_on_one_node():
    found = script("--mem=1G")
    assert found.spec.task is not None
    assert found.spec.task.command[:3] == ("/bin/bash", "-l", "-c")
    assert found.spec.task.command[4:] == ("train.sh", "x")
    several = script("-N2", "--mem=1G").spec.task
    assert several is not None
    assert several.command[:2] == ("sh", "-c")
    assert "NODE_RANK" in several.command[2]
    assert several.command[4:7] == ("/bin/bash", "-l", "-c")


@pytest.mark.parametrize(
    ("lines", "nodes", "cpus", "accelerators"),
    [
        ((), 1, 1, 0),
        (("-n8",), 1, 8, 0),
        (("-n 8", "--ntasks-per-node 4"), 2, 4, 0),
        (("--nodes=2-4", "-n 8", "-c 2"), 2, 8, 0),
        (("-N 2", "-G 8"), 2, 1, 4),
        (("-N 2", "--gpus-per-node=h100:4"), 2, 1, 4),
        (("-N 2", "--ntasks-per-node=4", "--gpus-per-task=1"), 2, 4, 4),
        (("--gres gpu",), 1, 1, 1),
    ],
)
def test_tasks_and_devices_are_counted_for_each_node(lines, nodes, cpus, accelerators):
    spec = script(*lines).spec
    assert spec.nodes == nodes
    assert spec.resources.cpu_milli == 1000 * cpus
    assert spec.resources.accelerators == accelerators


@pytest.mark.parametrize(
    ("line", "kind", "count"),
    [
        ("--gres=gpu:2080ti:2", "2080ti", 2),
        ("--gres=gpu:1g.5gb:7", "1g.5gb", 7),
        ("--gres=gpu:3090:4", "3090", 4),
        ("--gres=gpu:4", "", 4),
        ("--gpus-per-node=2080ti:3", "2080ti", 3),
    ],
)
def test_a_type_of_devices_may_begin_with_a_digit(line, kind, count):
    found = script(line, "--mem=1G", "--time=60")
    resources = found.spec.resources
    assert (resources.accelerator_class, resources.accelerators) == (kind, count)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:00", 7200),
        ("1-12", 129_600),
        ("1-0:30", 88_200),
        ("7-00:00:01", 604_801),
        ("UNLIMITED", 0),
    ],
)
def test_every_form_of_a_time_limit(written, seconds):
    assert script(f"--time={written}").spec.time_limit_s == seconds


def test_what_is_done_in_another_way_or_not_at_all_is_said():
    found = script(
        "-o out_%j.txt",
        "--mail-type=END",
        "--frobnicate=1",
        "--mem=1G",
        "--qos low",
        "-t 60",
        "-x n1",
    )
    assert found.notes == (
        "--output is not needed: `moulin logs` shows what it prints",
        "--mail-type is not needed: a project's webhook is told",
        "--frobnicate is left out: Moulin does not know it",
        "--qos is not needed: the project of your key has its own limits",
        "--exclude is not needed: nodes are chosen by their room and health",
    )
    assert "no --mem" in script().notes[0]
    assert "no --time" in script().notes[1]


@pytest.mark.parametrize(
    ("written", "name", "grace_s"),
    [
        ("B:USR1@120", "USR1", 120),
        ("SIGINT@30", "INT", 30),
        ("10", "USR1", 60),
        ("R:15@5", "TERM", 5),
    ],
)
def test_a_signal_comes_before_the_end_and_not_after(written, name, grace_s):
    found = script("--time=10", f"--signal={written}", "--mem=1G")
    spec = found.spec
    assert (spec.stop_signal, spec.stop_grace_s) == (name, grace_s)
    assert spec.time_limit_s + spec.stop_grace_s == 600
    assert found.notes == (
        f"--signal: {name} goes to all of its processes, and {grace_s} s later KILL",
    )
    assert script(f"--signal={written}").spec.time_limit_s == 0


@pytest.mark.parametrize("written", ["KILL@10", "B:", "USR1@x", "9@10", "USR1@600"])
def test_a_signal_that_cannot_be_sent_is_refused(written):
    with pytest.raises(InvalidSpec, match="--signal"):
        script("--time=10", f"--signal={written}")


@pytest.mark.parametrize("line", ["-C a100", "--licenses=matlab", "--reservation=course"])
def test_what_only_slurm_can_promise_is_refused(line):
    with pytest.raises(InvalidSpec) as caught:
        script(line)
    assert caught.value.hint


def test_memory_for_each_cpu_is_added_up():
    assert script("--mem-per-cpu=2G", "-c 4").spec.resources.memory_bytes == 8 << 30


def test_dependencies_on_jobs_of_moulin():
    spec = script("-d afterok:job_1:prepare,afterany:other").spec
    assert spec.after == (
        After(workload="job_1", when=AfterWhen.OK),
        After(workload="prepare", when=AfterWhen.OK),
        After(workload="other", when=AfterWhen.ANY),
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-d afterok:12345", "names a job of Slurm"),
        ("-d singleton", "not possible here"),
        ("-d afternotok:job_1", "not possible here"),
        ("--begin=now+1hour", "cannot do this yet"),
        ("--exclusive", "cannot do this yet"),
        ("--tres-per-task=cpu:4,gres/gpu:1", "cannot do this yet"),
        ("--cpus-per-gpu=8", "cannot do this yet"),
        ("--mem-per-gpu=8G", "cannot do this yet"),
        ("--gpus-per-socket=1", "cannot do this yet"),
        ("--time=soon", "as a time"),
        ("--mem=lots", "as memory"),
        ("--mem=0", "all memory"),
        ("-N many", "cannot read"),
        ("--gpus-per-node=a:b:c", "cannot read"),
        ("--array=0-x", "cannot read"),
    ],
)
def test_what_would_give_another_result_is_refused(line, words):
    with pytest.raises(InvalidSpec, match=words) as refused:
        script(line)
    assert refused.value.hint


def test_lines_after_the_first_command_are_none():
    text = "#!/bin/sh\n##SBATCH -N 3\n#SBATCH -c 2\necho hi\n#SBATCH -N 9\n"
    spec = parse_sbatch(text, origin="a.sh", workdir="/w").spec
    assert (spec.nodes, spec.resources.cpu_milli) == (1, 2000)
