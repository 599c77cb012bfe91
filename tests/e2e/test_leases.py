"""Leased nodes as their tenant meets them, with a real `ssh`: on this machine, and on a real Slurm."""

import os
import pty
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from moulin.app.datadir import read_run
from moulin.domain.units import parse_time
from tests.e2e.conftest import Shell
from tests.slurm_cluster import living_pids

MISSING = [
    name
    for name in ("ssh", "sshd", "ssh-keygen")
    if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None
]
pytestmark = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("CI"), reason="apt-get install openssh-server"
)
FACTORY = """
organisations:
  lab: {{roles: [operator, tenant]}}
sites:
  here: {{country: FR}}
zones:
  rack: {{site: here}}
pools:
  gpu:
    zone: rack
    engine: slurm
    machine_class: H100
    settings: {{partition: short, conf: {conf}, poll_ms: 200, idle_power: 100W, peak_power: 700W}}
projects:
  default: {{organisation: lab}}
prices:
  list: {{cpu_hour: 0.02, accelerator_hour: {{H100: 2.5}}}}
"""
# A look may last so long on a busy machine.
LOOK_S = 5.0
LEFT = "nohup setsid sleep 12345 > /dev/null 2>&1 & echo $!"


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """Two key pairs: `mine`, and `other` that nothing was leased for."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    return folder


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """This machine as two nodes, with a budget that does not last for long."""
    opened = Shell(tmp_path_factory.mktemp("halves"), is_inside=True)
    opened.up("--country", "FR", "--nodes", "2")
    yield opened
    opened.close()


def order(shell: Shell, keys: Path, offer: str, name: str, *words: str) -> dict:
    key = str(keys / "mine.pub")
    return shell.json("lease", "order", offer, "--name", name, "--key", key, "--wait", *words)


def ssh(lease: dict, key: Path, *words: str, rank: int = 0) -> subprocess.CompletedProcess[str]:
    """Log in as a person would, believing only the host key that Moulin told."""
    login = lease["nodes"][rank]["login"]
    known = key.with_name(f"known-{lease['id']}-{rank}")
    known.write_text(f"[{login['host']}]:{login['port']} {login['host_key']}\n")
    options = ("BatchMode=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={known}")
    flags = [word for option in options for word in ("-o", option)]
    place = f"{login['user']}@{login['host']}"
    return subprocess.run(
        ["ssh", "-F", "none", *flags, "-i", str(key), "-p", str(login["port"]), place, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def show(shell: Shell, lease: dict) -> dict:
    return shell.json("lease", "show", lease["id"])


def until_over(shell: Shell, lease: dict) -> dict:
    shell.until(lambda: show(shell, lease)["ended_at"])
    return show(shell, lease)


def test_a_tenant_logs_in_where_nobody_else_is_put(halves, keys):
    offer = halves.json("lease", "offers")[0]
    assert (offer["nodes"], offer["free"]) == (2, 2)
    assert int(offer["node_hour_neur"]) > 0
    lease = order(halves, keys, offer["name"], "bench", "--time", "1h")
    assert lease["state"] == "delivered"
    node = next(
        each for each in halves.json("status")["nodes"] if each["node"] == lease["nodes"][0]["node"]
    )
    done = ssh(lease, keys / "mine", "nproc; taskset -cp $$; echo $MOULIN_WORKLOAD_ID")
    cpus = sorted(os.sched_getaffinity(0))
    first = cpus[: len(cpus) - len(cpus) // 2]
    assert done.stdout.split()[0] == str(len(first)), done.stderr
    assert lease["id"] in done.stdout
    assert node["cpu_milli_held"] == node["cpu_milli"]
    assert int(node["memory_bytes_held"]) == int(node["memory_bytes"])
    # Only with the key that was named, and not on to other machines.
    assert "Permission denied" in ssh(lease, keys / "other", "true").stderr
    login = lease["nodes"][0]["login"]
    beyond = ssh(lease, keys / "mine", "-W", "192.0.2.1:22")
    assert beyond.returncode != 0
    again = halves.moulin("lease", "ssh", "bench", "--identity", str(keys / "mine"), "--", "exit 7")
    assert again.returncode == 7, again.stderr
    said = halves.json("lease", "ssh", "bench")
    assert said["known_hosts"] == f"[127.0.0.1]:{login['port']} {login['host_key']}"

    # Whoever waits for its node is not kept waiting longer.
    waiting = halves.json("run", "--nodes", "2", "--", "true")
    refused = halves.moulin("lease", "extend", "bench", "1h")
    assert refused.returncode == 1
    assert f"kept for {waiting['id']}" in refused.stderr
    halves.moulin("stop", waiting["id"])
    longer = halves.json("lease", "extend", "bench", "30m")
    assert longer["time_limit_s"] == 5400
    held = (int(longer["reserved_neur"]) + int(longer["spent_neur"])) / int(offer["node_hour_neur"])
    assert held == pytest.approx(1.5, abs=0.01)

    # The control plane may die: who is logged in does not notice, and what was leased is found again.
    pid = ssh(lease, keys / "mine", LEFT).stdout.strip()
    control = halves.json("status")["epoch"]
    os.kill(control_pid(halves), signal.SIGKILL)
    halves.until(lambda: halves.json("status")["epoch"] > control)
    assert show(halves, lease)["nodes"] == lease["nodes"]
    assert ssh(lease, keys / "mine", f"kill -0 {pid} && echo lives").stdout == "lives\n"

    # Given back: the whole tree ends, and the bill with it.
    halves.moulin("lease", "release", "bench")
    over = until_over(halves, lease)
    assert over["state"] == "released"
    assert int(pid) not in living_pids()
    assert ssh(lease, keys / "mine", "true").returncode == 255
    check_bill(halves, over, node["cpu_milli"])


def control_pid(shell: Shell) -> int:
    control = read_run(shell.data).control
    assert control is not None
    return control.pid


def check_bill(shell: Shell, lease: dict, cpu_milli: int) -> None:
    """A whole node is charged on each receipt, and the last one ends when its last process did."""
    shell.until(lambda: int(show(shell, lease)["reserved_neur"]) == 0)
    usages = [
        each["usage"] for each in shell.json("receipt", "list", "--workload", lease["id"])["items"]
    ]
    for usage in usages:
        lasted_ms = (parse_time(usage["end"]) - parse_time(usage["start"])) / 10**6
        held = int(usage["quantities"]["cpu_milli_ms"])
        assert held == pytest.approx(lasted_ms * cpu_milli, abs=2 * cpu_milli)
        assert int(usage["energy_mj"]) > 0
    # A lease has not ended after the look that found it over began; its bill is exact.
    later_s = (
        parse_time(max(each["end"] for each in usages)) - parse_time(lease["ended_at"])
    ) / 1e9
    assert 0 <= later_s < LOOK_S
    assert min(usage["start"] for usage in usages) <= lease["started_at"]


def test_a_lease_that_expires_says_so_on_its_terminals(halves, keys):
    offer = halves.json("lease", "offers")[0]["name"]
    lease = order(halves, keys, offer, "short", "--time", "12s")
    login = lease["nodes"][0]["login"]
    reader, writer = pty.openpty()
    place = f"{login['user']}@{login['host']}"
    options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
    session = subprocess.Popen(
        [
            *("ssh", "-F", "none", "-tt", *options, "-i", str(keys / "mine")),
            *("-p", str(login["port"]), place, "sleep 1000"),
        ],
        stdin=writer,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    said, _ = session.communicate(timeout=60)
    os.close(reader)
    os.close(writer)
    assert re.search(rb"\[moulin\] this lease ends in [0-3] s", said)
    over = until_over(halves, lease)
    assert over["state"] == "expired"
    refused = halves.moulin("lease", "extend", lease["id"], "1h")
    assert "it has ended" in refused.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere/none",), "there is no such offer"),
        (("local/this-machine", "--nodes", "9"), "9 nodes are needed"),
        (("local/this-machine", "--time", "9999d"), "a whole number up to"),
    ],
)
def test_orders_that_make_no_lease(halves, keys, words, said):
    done = halves.moulin("lease", "order", *words, "--key", str(keys / "mine.pub"))
    assert done.returncode == 1
    assert said in done.stderr


def test_a_key_that_is_none_is_refused(halves, keys):
    done = halves.moulin("lease", "order", "local/this-machine", "--key", str(keys / "mine"))
    assert "read an SSH public key" in done.stderr


@pytest.fixture(scope="module")
def front(tmp_path_factory, slurm_cluster):
    opened = Shell(tmp_path_factory.mktemp("rack"), is_inside=True)
    path = opened.folder / "factory.yaml"
    path.write_text(FACTORY.format(conf=slurm_cluster.environment["SLURM_CONF"]))
    opened.up("--factory", str(path))
    opened.until(lambda: len(opened.json("status")["nodes"]) == 2)
    yield opened
    opened.close()


@pytest.mark.slurm
def test_nodes_of_slurm_are_leased_whole(front, keys, slurm_cluster):
    lease = order(front, keys, "rack/H100", "rack", "--whole", "--time", "10m")
    assert [node["node"] for node in lease["nodes"]] == ["gpu-node-0", "gpu-node-1"]
    names = [ssh(lease, keys / "mine", "echo $SLURMD_NODENAME", rank=rank) for rank in (0, 1)]
    assert [done.stdout for done in names] == ["node-0\n", "node-1\n"], names[0].stderr
    job = slurm_cluster.run("squeue", "-h", "-o", "%i %h %D %l").split()
    assert (job[1], job[2]) == ("NO", "2")
    before = slurm_cluster.run("squeue", "-h", "-o", "%l")
    front.json("lease", "extend", "rack", "10m")
    assert slurm_cluster.run("squeue", "-h", "-o", "%l") != before
    # The partition ends everything after half an hour, so no lease can be longer.
    refused = front.moulin("lease", "extend", "rack", "1h")
    assert "partition short ends jobs after 1800 s" in refused.stderr
    pids = [int(ssh(lease, keys / "mine", LEFT, rank=rank).stdout) for rank in (0, 1)]
    front.moulin("lease", "release", "rack")
    over = until_over(front, lease)
    assert over["state"] == "released"
    assert not set(pids) & set(living_pids())
    slurm_cluster.wait_for(lambda: not slurm_cluster.run("squeue", "-h"), "the job does not end")
    check_bill(front, over, 8_000)
