"""One job file, unchanged, on three engines behind one Moulin: what it prints and leaves is the same."""

import shutil

import pytest

from tests.e2e.conftest import Shell
from tests.e2e.test_examples import EXAMPLES

pytestmark = [pytest.mark.ray, pytest.mark.slurm, pytest.mark.slow]
ZONES = ("here", "hpc", "cellar")
RANKS = ("0", "1")
FACTORY = """
organisations:
  lab: {{roles: [operator, tenant]}}
sites:
  lab: {{country: FR}}
zones:
  here: {{site: lab}}
  hpc: {{site: lab}}
  cellar: {{site: lab}}
pools:
  machine:
    zone: here
    engine: local
    machine_class:     this-machine
    settings: {{nodes: 2}}
  batch:
    zone: hpc
    engine: slurm
    machine_class: H100
    settings: {{partition: batch, conf: {conf}, poll_ms: 200}}
  node:
    zone: cellar
    engine: ray
    machine_class: H100
    settings: {{address: "{address}", agent_port: {port}, token_file: "{token}", spool: "{spool}"}}
projects:
  default: {{organisation: lab}}
prices:
  list: {{cpu_hour: 0.02}}
"""


@pytest.fixture(scope="module")
def front(tmp_path_factory, slurm_cluster, ray_cluster, podman):
    opened = Shell(tmp_path_factory.mktemp("front"), is_inside=True)
    factory = opened.folder / "factory.yaml"
    factory.write_text(
        FACTORY.format(
            conf=slurm_cluster.environment["SLURM_CONF"],
            address=ray_cluster.pool.address,
            port=ray_cluster.pool.agent_address.rpartition(":")[2],
            token=ray_cluster.token_file,
            spool=ray_cluster.pool.spool,
        )
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("PATH", "CONTAINERS_STORAGE_CONF"):
                patch.setenv(name, podman.environment[name])
            opened.up("--factory", str(factory))
        opened.until(lambda: len(opened.json("status")["nodes"]) >= 2 + 4 + 2)
        yield opened
    finally:
        opened.close()


def test_one_file_gives_the_same_on_every_engine(front):
    said, left = {}, {}
    for zone in ZONES:
        results = front.folder / f"results-{zone}"
        results.mkdir()
        words = ("--follow", "--zone", zone, "-e", f"RESULTS={results}")
        done = front.moulin("run", str(EXAMPLES / "08_anywhere.yaml"), *words)
        assert done.returncode == 0, f"{zone}: {done.stderr}"
        said[zone] = done.stdout
        # Every rank ran once: a second run of it would have left a second line.
        left[zone] = {rank: (results / rank).read_text() for rank in RANKS}
    assert said["here"].splitlines()[0] == "rank 0 of 2, generation 1"
    assert [said[zone] for zone in ZONES] == [said["here"]] * len(ZONES)
    assert [left[zone] for zone in ZONES] == [left["here"]] * len(ZONES)
    parts = [int(part) for part in left["here"].values()]
    assert sum(parts) == sum(n * n for n in range(1_000_000))
    front.until(lambda: len({item["workload"] for item in front.json("usage")["items"]}) >= 3)


def test_a_job_in_an_image_is_followed_and_charged(front, podman):
    job = front.folder / "job.yaml"
    job.write_text(
        f"name: boxed\nimage: {podman.image}\nenvs: {{WORD: grist}}\ntime_limit: 5m\n"
        "resources: {cpus: 1, memory: 100MB}\nrun: cat /etc/made-here; echo $WORD; exit 5\n"
    )
    done = front.moulin("run", str(job), "--follow", "--zone", "here")
    assert done.returncode == 5, done.stderr
    assert done.stdout == "only in the image\ngrist\n"
    [view] = [job for job in front.json("jobs")["items"] if job["name"] == "boxed"]
    front.until(lambda: view["id"] in {item["workload"] for item in front.json("usage")["items"]})


@pytest.mark.skipif(shutil.which("apptainer") is not None, reason="Apptainer is here")
def test_an_image_that_a_cluster_cannot_run_is_refused_with_what_to_install(front):
    job = front.folder / "job.yaml"
    job.write_text("name: unboxed\nimage: ubuntu:24.04\ntime_limit: 5m\nrun: echo never\n")
    done = front.moulin("run", str(job), "--follow", "--zone", "hpc")
    assert (done.returncode, done.stdout) == (1, "")
    assert "it needs an image, which none of the 4 permitted node(s)" in done.stderr
    assert "installed on the nodes, of Slurm pyxis or Apptainer" in done.stderr
