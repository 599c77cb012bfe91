"""A cluster one already owns: the real control plane in front of a real Slurm."""

import json
import os
import signal

import pytest

from moulin.sdk import Credentials, Moulin
from tests.e2e.conftest import Shell

pytestmark = pytest.mark.slurm

FACTORY = """
organisations:
  lab: {{roles: [operator, tenant]}}
sites:
  here: {{country: FR}}
zones:
  hpc: {{site: here}}
  anywhere: {{site: here}}
pools:
  gpu:
    zone: hpc
    engine: slurm
    machine_class: H100
    settings: {{partition: batch, conf: {conf}, poll_ms: 200, idle_power: 100W, peak_power: 700W}}
  shared:
    zone: anywhere
    engine: slurm
    machine_class: H100
    mode: delegated
    settings: {{partition: short, conf: {conf}, poll_ms: 200}}
projects:
  default: {{organisation: lab}}
prices:
  list: {{cpu_hour: 0.02, accelerator_hour: {{H100: 2.5}}}}
"""


@pytest.fixture(scope="module")
def front(tmp_path_factory, slurm_cluster):
    opened = Shell(tmp_path_factory.mktemp("front"), is_inside=True)
    path = opened.folder / "factory.yaml"
    path.write_text(FACTORY.format(conf=slurm_cluster.environment["SLURM_CONF"]))
    opened.up("--factory", str(path))
    opened.until(lambda: len(opened.json("status")["nodes"]) == 8)
    yield opened
    opened.close()


def test_a_command_runs_as_a_job_of_slurm_and_is_charged(front, slurm_cluster):
    words = ("--zone", "hpc", "--accelerators", "H100:2", "--", "sh", "-c")
    script = "echo on $SLURMD_NODENAME with $CUDA_VISIBLE_DEVICES in job $SLURM_JOB_ID; sleep 1"
    done = front.moulin("run", "--follow", *words, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("on node-")
    assert "with 0,1 in job " in done.stdout
    job = done.stdout.split()[-1]
    # The number is Slurm's own, and its job carries the name of the attempt.
    assert "job_" in slurm_cluster.run("squeue", "-h", "--states=all", f"--jobs={job}", "-o", "%j")
    front.until(lambda: front.json("usage")["items"])


def test_a_gang_is_one_job(front, slurm_cluster):
    script = 'echo "$RANK $SLURM_PROCID of $WORLD_SIZE"'
    view = front.json("run", "--nodes", "3", "--zone", "hpc", "--", "sh", "-c", script)
    with Moulin(credentials=credentials(front)) as client:
        front.until(lambda: is_over(client, view["id"]))
        assert client.workloads.get(view["id"]).state == "succeeded"
        for rank in range(3):
            said = b"".join(client.workloads.follow(view["id"], rank=rank))
            assert said == f"{rank} {rank} of 3\n".encode()
    listed = slurm_cluster.run("squeue", "-h", "--states=all", "-o", "%j").splitlines()
    assert len([name for name in listed if name.startswith(view["id"])]) == 1


def test_an_array_is_few_submissions(front, slurm_cluster):
    view = front.json("run", "--array", "0-15", "--zone", "hpc", "--", "sh", "-c", "exit 0")
    own: set[tuple[str, ...]] = set()  # Slurm forgets what ended half a minute ago

    def has_ended(client):
        listed = slurm_cluster.run("squeue", "-h", "--states=all", "-o", "%j %K %F").splitlines()
        own.update(tuple(line.split()) for line in listed if line.startswith(view["id"]))
        return is_over(client, view["id"])

    with Moulin(credentials=credentials(front)) as client:
        front.until(lambda: has_ended(client))
        has_ended(client)
        assert client.workloads.get(view["id"]).state == "succeeded"
    alone = [each for each in own if each[1].isdigit()]
    assert len(alone) == 16
    # One for each of four nodes, and a few more when not all fit at once.
    assert len({number for _, _, number in own}) <= 8


def test_a_delegated_pool_lets_slurm_place(front):
    script = "echo $RANK of $WORLD_SIZE at $MASTER_ADDR on $SLURMD_NODENAME"
    done = front.moulin(
        *("run", "--follow", "--nodes", "2", "--zone", "anywhere", "--time-limit", "10m"),
        *("--", "sh", "-c", script),
    )
    assert done.returncode == 0, done.stderr
    assert "0 of 2 at " in done.stdout


def test_more_time_than_the_partition_gives_is_refused_at_once_and_goes_elsewhere(front):
    long = ("--time-limit", "2h", "--", "true")
    done = front.moulin("run", "--zone", "anywhere", *long)
    assert done.returncode == 1
    assert "its time limit is 120 min, the longest" in done.stderr
    assert "allow is 30 min (pools: shared)" in done.stderr
    assert "hint: ask for a shorter `time_limit`" in done.stderr
    for _ in range(3):
        done = front.moulin("run", "--follow", "--zone", "hpc", "--zone", "anywhere", *long)
        assert done.returncode == 0, done.stderr


def test_a_job_that_names_no_time_gets_what_the_partition_gives(front, slurm_cluster):
    view = front.json("run", "--zone", "anywhere", "--", "sleep", "20")
    assert view["spec"]["time_limit_s"] == 1800
    listed = ("squeue", "-h", "-o", "%j %l")
    front.until(lambda: view["id"] in slurm_cluster.run(*listed))
    [job] = [x for x in slurm_cluster.run(*listed).splitlines() if x.startswith(view["id"])]
    assert job.split()[1] == "30:00"
    front.json("stop", view["id"])


def test_a_job_outlives_the_control_plane_and_is_adopted(front, slurm_cluster):
    effects = front.folder / "effects"
    script = f"echo ran >> {effects}; sleep 6; echo done >> {effects}"
    view = front.json("run", "--zone", "hpc", "--", "sh", "-c", script)
    front.until(effects.exists)
    control = json.loads((front.data / "run.json").read_text())["control"]["pid"]
    os.kill(control, signal.SIGKILL)
    with Moulin(credentials=credentials(front)) as client:
        front.until(lambda: is_over(client, view["id"]))
        assert client.workloads.get(view["id"]).state == "succeeded"
    assert effects.read_text().split() == ["ran", "done"]


def test_a_stop_reaches_the_program(front):
    effects = front.folder / "stopped"
    script = (
        f"trap 'echo told >> {effects}; exit 3' TERM; touch {effects}; while :; do sleep 0.05; done"
    )
    view = front.json("run", "--zone", "hpc", "--", "sh", "-c", script)
    front.until(effects.exists)
    assert front.moulin("stop", view["id"]).returncode == 0
    with Moulin(credentials=credentials(front)) as client:
        front.until(lambda: is_over(client, view["id"]))
    assert effects.read_text().split() == ["told"]


def test_down_ends_work_of_the_cluster_though_moulin_has_stopped(front, slurm_cluster):
    begun = front.folder / "begun"
    front.json("run", "--zone", "hpc", "--", "sh", "-c", f"touch {begun}; sleep 1000")
    front.until(begun.exists)
    front.started[-1].terminate()
    front.started[-1].communicate()
    assert slurm_cluster.run("squeue", "-h", "--states=running", "-o", "%i").split()
    done = front.json("down")
    front.up()
    assert not done["was_running"]
    assert done["workloads"] >= 1
    assert slurm_cluster.run("squeue", "-h", "--states=running", "-o", "%i").split() == []


def credentials(shell) -> Credentials:
    known = json.loads((shell.data / "credentials.json").read_text())
    return Credentials(
        control_url=known["control_url"],
        gateway_url=known["gateway_url"],
        api_key=known["api_key"],
        project=known["project"],
    )


def is_over(client, workload) -> bool:
    try:
        return client.workloads.get(workload).state in ("succeeded", "failed", "cancelled")
    except Exception:  # noqa: BLE001 - the control plane is being started again
        return False


def test_a_cluster_is_imported_as_it_is(front, slurm_cluster):
    words = ("--country", "SE", "--site", "norr", "--conf", slurm_cluster.environment["SLURM_CONF"])
    target = front.folder / "norr.yaml"
    done = front.moulin("cluster", "import", *words, "-o", str(target))
    assert done.returncode == 0, done.stderr
    text = target.read_text()
    assert "norr: {country: SE}" in text
    assert "4 × 8 CPUs" in text
    assert "4 × h100" in text
    shown = front.moulin("apply", str(target), "--dry-run")
    assert shown.returncode == 1
    assert "pools batch, gpu: both are the same Slurm partition" in shown.stderr


def test_a_batch_script_runs_as_it_is(front):
    path = front.folder / "count.sh"
    path.write_text(
        "#!/bin/bash\n#SBATCH -N 2 --ntasks-per-node=2 -c 1\n#SBATCH -p hpc -t 0:10:00\n"
        "#SBATCH --mem=200M --output=x.txt\necho script $1 on $(hostname > /dev/null && echo one)\n"
        "srun --mpi=none sh -c 'echo task $SLURM_PROCID of $SLURM_NTASKS' | sort\nexit 7\n"
    )
    done = front.moulin("run", "--follow", str(path), "word")
    assert done.returncode == 7
    assert done.stdout.splitlines() == [
        "script word on one",
        *(f"task {index} of 4" for index in range(4)),
    ]
    assert "--output is not needed" in done.stderr
