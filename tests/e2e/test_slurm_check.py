"""`moulin cluster check` against a real Slurm: what is well, what is not, and that it leaves nothing behind."""

import getpass
import json
import signal
import subprocess

import pytest

from benchmarks._node_failure_slurm import Line
from tests.e2e.conftest import Shell
from tests.ssh_server import need_ssh

pytestmark = pytest.mark.slurm
FACTORY = """
organisations:
  lab: {{roles: [operator, tenant]}}
sites:
  here: {{country: FR}}
zones:
  hpc: {{site: here}}
pools:
  shared:
    zone: hpc
    engine: slurm
    machine_class: H100
    mode: {mode}
    settings: {settings}
projects:
  default: {{organisation: lab, quota: {{cpus: 2}}}}
"""


class Checked:
    """Checks pools of files that were not applied."""

    def __init__(self, shell, cluster):
        self.shell = shell
        self.cluster = cluster
        self.shared = shell.folder / "shared"

    def write(self, mode="owned", **settings):
        given = {"conf": str(self.cluster.conf), "directory": str(self.shared), **settings}
        kept = {name: value for name, value in given.items() if value}
        path = self.shell.folder / "cluster.yaml"
        path.write_text(FACTORY.format(mode=mode, settings=json.dumps(kept)))
        return str(path)

    def check(self, *words, mode="owned", **settings):
        """Return the exit status, and verdict and message by name."""
        file = self.write(mode, **settings)
        done = self.shell.moulin("cluster", "check", "--file", file, *words, "--json")
        assert done.stdout, done.stderr
        told = json.loads(done.stdout)
        assert told["ok"] is (done.returncode == 0)
        findings = {each["name"]: each for each in told["pools"]["shared"]}
        assert all(each["hint"] for each in findings.values() if each["verdict"] != "ok")
        return done.returncode, findings

    def jobs(self):
        return self.cluster.run("squeue", "-h", "-o", "%j %T")


@pytest.fixture
def checked(tmp_path, slurm_cluster):
    opened = Checked(Shell(tmp_path, is_inside=True), slurm_cluster)
    yield opened
    # It leaves neither a job nor a file.
    slurm_cluster.wait_for(
        lambda: "moulin-check" not in opened.jobs(), "a job of the check is left"
    )
    assert not opened.shared.exists() or not list(opened.shared.glob(".check-*"))


@pytest.fixture
def busy(slurm_cluster):
    """All of the cluster, held by somebody else's job."""
    words = ("--parsable", "--exclusive", "--nodes=4", "--output=/dev/null", "--wrap=sleep 300")
    job = slurm_cluster.run("sbatch", *words)
    state = lambda: slurm_cluster.run("squeue", "-h", "-j", job, "-o", "%T")
    slurm_cluster.wait_for(lambda: state() == "RUNNING", "the cluster does not get busy")
    yield state
    slurm_cluster.run("scancel", job)
    slurm_cluster.wait_for(lambda: slurm_cluster.states() == {"idle"}, "it stays busy")


def test_a_pool_that_will_work(checked):
    status, found = checked.check(partition="batch")
    assert {name: each["verdict"] for name, each in found.items()} == dict.fromkeys(
        (
            *("settings", "commands", "controller", "partition", "nodes", "who may submit"),
            *("accounting", "submission", "directory", "job", "directory on the node"),
            *("python", "clock of the node", "images", "ports of the node"),
        ),
        "ok",
    )
    assert status == 0
    messages = {name: each["message"] for name, each in found.items()}
    assert messages["partition"] == "batch is up; jobs may last 1440 min"
    assert messages["nodes"] == "4 of 4 take jobs; 16 GPUs in all"
    assert messages["who may submit"] == "everybody"
    assert messages["python"].startswith("Python 3.")
    assert "no slurmdbd" in messages["accounting"]
    assert messages["ports of the node"].startswith("127.0.0.1:")


def test_a_pool_is_checked_in_words(checked):
    done = checked.shell.moulin("cluster", "check", "shared", "--file", checked.write("delegated"))
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "pool shared")
    assert "ok      python: Python 3." in done.stdout
    assert "        hint: install Apptainer or pyxis on every node" in done.stdout
    assert "looks at a node; it may wait 60 s in the queue" in done.stderr
    unknown = checked.shell.moulin("cluster", "check", "other", "--file", checked.write())
    assert unknown.returncode == 1
    assert "cluster.yaml has shared" in unknown.stderr


@pytest.mark.parametrize(
    ("settings", "name", "words"),
    [
        ({"partition": "none"}, "partition", "there is no partition 'none'"),
        ({"account": "who", "constraint": "blue"}, "submission", "account who, constraint blue"),
        ({"reservation": "monday"}, "submission", "eservation"),
        (
            {"python": "/usr/bin/python2.6"},
            "python",
            "python2.6 is no Python 3.8 or later on node-",
        ),
        ({"images": "/opt/apptainer"}, "images", "/opt/apptainer is not on node-"),
        ({"mirror": "yes"}, "settings", "`mirror` is for delegated pools"),
        ({"colour": "blue"}, "settings", "no setting 'colour'"),
        ({"directory": "/proc/none"}, "directory", "/proc/none cannot be written here"),
        ({"ssh": "none.invalid"}, "commands", "over SSH"),
    ],
)
def test_what_is_wrong_is_named(checked, settings, name, words):
    status, found = checked.check(**settings)
    wrong = [each for each in found.values() if each["verdict"] == "problem"]
    assert name in {each["name"] for each in wrong}, found
    assert words in found[name]["message"]
    assert status == 1


def test_a_partition_that_is_down_is_said_before_a_job_waits_for_it(checked):
    checked.cluster.run("scontrol", "update", "PartitionName=short", "State=DOWN")
    try:
        status, found = checked.check("--wait", "2", partition="short")
    finally:
        checked.cluster.run("scontrol", "update", "PartitionName=short", "State=UP")
    assert (status, found["partition"]["verdict"]) == (1, "problem")
    assert found["partition"]["message"] == "short is DOWN"
    assert "State=UP" in found["partition"]["hint"]
    assert found["job"]["verdict"] == "unknown"


def test_a_job_that_waits_is_cancelled_and_others_are_left_alone(checked, busy):
    status, found = checked.check("--wait", "2")
    assert (status, found["job"]["verdict"]) == (0, "unknown")
    assert "waits in the queue after 2 s: " in found["job"]["message"]
    assert "--wait 600" in found["job"]["hint"]
    assert busy() == "RUNNING"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_takes_its_job_back(checked, busy, number):
    process = checked.shell.begin("cluster", "check", "--file", checked.write())
    try:
        checked.shell.until(lambda: "moulin-check" in checked.jobs())
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert b"interrupted; the check's own job is cancelled" in error
    assert busy() == "RUNNING"


def test_a_directory_of_this_machine_alone(checked):
    """The check sees a file system of its own at the path, as a machine does that did not mount it."""
    checked.shared.mkdir()
    file = checked.write()
    hidden = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs none {checked.shared} && "$@"',
        "sh",
    ]
    if subprocess.run([*hidden, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    words = ("cluster", "check", "--file", file, "--json")
    done = subprocess.run(
        [*hidden, *checked.shell.command(*words)],
        cwd=checked.shell.folder,
        env=checked.shell.environment(),
        capture_output=True,
        check=False,
        timeout=120,
    )
    told = {each["name"]: each for each in json.loads(done.stdout)["pools"]["shared"]}
    assert (done.returncode, told["directory"]["verdict"]) == (1, "ok")
    wrong = told["directory on the node"]
    assert wrong["verdict"] == "problem"
    assert "and not what is written there from here" in wrong["message"]
    assert "`directory`" in wrong["hint"]


@pytest.fixture
def line(monkeypatch):
    need_ssh()
    opened = Line.open()
    monkeypatch.setenv("PATH", opened.environment["PATH"])
    yield opened
    opened.close()


def test_over_ssh_and_whether_ports_are_forwarded(checked, line):
    over_ssh = {"ssh": line.destination, "reach_replicas": "ssh"}
    status, found = checked.check(**over_ssh)
    assert (status, {each["verdict"] for each in found.values()}) == (0, {"ok"})
    assert found["commands"]["message"].endswith(f"over SSH, as user {getpass.getuser()}")
    assert f"clock of {line.destination}" in found
    assert found["ports of the node"]["message"].endswith(f"over SSH to {line.destination}")

    config = line.folder / "config"
    config.write_text(f"{config.read_text()}AllowTcpForwarding no\n")
    line.cut()
    line.mend()
    status, found = checked.check(**over_ssh)
    assert (status, found["ports of the node"]["verdict"]) == (1, "problem")
    assert "`AllowTcpForwarding`" in found["ports of the node"]["message"]


def test_whether_a_node_reaches_the_control_plane(checked):
    status, found = checked.check(control_url="http://127.0.0.1:1")
    assert (status, found["control_url"]["verdict"]) == (0, "unknown")
    assert "nor does this machine" in found["control_url"]["message"]

    url = checked.shell.up("--factory", checked.write("delegated"))[1]["control_url"]
    status, found = checked.check(control_url=url)
    assert (status, found["control_url"]["message"].partition(" reaches ")[2]) == (0, url)
    told = checked.shell.json("cluster", "check", "shared")
    assert told["ok"] is True
    checked.shell.close()


def test_by_slurmrestd_alone(tmp_path, rest_cluster):
    checked = Checked(Shell(tmp_path, is_inside=True), rest_cluster)
    way = {
        "rest": rest_cluster.url,
        "rest_user": "root",
        "partition": "batch",
        "rest_token": str(rest_cluster.token_file),
    }
    status, found = checked.check(mode="delegated", conf="", **way)
    assert (status, {each["verdict"] for each in found.values()}) == (0, {"ok"}), found
    assert "python" in found
    assert "submission" not in found  # nothing there answers such a question
