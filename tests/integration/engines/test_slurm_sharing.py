"""Pools over one cluster ask it once, and log in to it once: every command that is really run is counted."""

import gc
import getpass
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.app.clock import SystemClock
from moulin.app.wiring.engines import EngineBook
from moulin.domain.factory import Pool
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.tunnel import Tunnel
from tests.conformance.engine_bench import WAIT_S, wait_until
from tests.slurm_cluster import PATH, SlurmCluster
from tests.ssh_server import SshServer

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]
POOLS = 8
PERIOD_S = 0.5
WATCHED_S = 6.0
# Runs the real one, having said so in one short line, which no other line comes between.
WRAPPER = """\
#!/bin/sh
echo "$(basename "$0") $*" >> {log}
exec {real} "$@"
"""


class Counted:
    """A folder of Slurm's commands that are noted when they are run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._log = folder / "bin", folder / "commands"
        self.folder.mkdir()
        self._log.touch()
        for name in ("squeue", "scontrol", "sbatch", "scancel", "sacct"):
            real = shutil.which(name, path=PATH) or name
            (self.folder / name).write_text(WRAPPER.format(log=self._log, real=real))
            (self.folder / name).chmod(0o755)

    def count(self, beginning: str) -> int:
        lines = self._log.read_text().splitlines()
        return sum(line.startswith(beginning) for line in lines)

    def forget(self) -> None:
        """Count from here on, once all that was begun has said so."""
        wait_until(lambda: not any(each.name == "slurm" for each in threading.enumerate()))
        self._log.write_text("")


@pytest.fixture
def counted(tmp_path) -> Counted:
    return Counted(tmp_path)


@pytest.fixture
def partitions(slurm_cluster: SlurmCluster) -> Iterator[list[str]]:
    """Give the cluster one partition for each pool, and take them away again."""
    names = [f"share{index}" for index in range(POOLS)]
    for name in names:
        slurm_cluster.run("scontrol", "create", f"PartitionName={name}", "Nodes=ALL")
    yield names
    for name in names:
        slurm_cluster.run("scontrol", "delete", f"PartitionName={name}")


def pool(name: str, cluster: SlurmCluster, counted: Counted, **settings: str) -> Pool:
    common = {
        "conf": cluster.environment["SLURM_CONF"],
        "bin": str(counted.folder),
        "poll_ms": f"{PERIOD_S * 1000:.0f}",
    }
    return Pool(
        name=name, zone="z", engine="slurm", machine_class="box", settings={**common, **settings}
    )


def engine_of(book: EngineBook, pool: Pool) -> SlurmEngine:
    found = book.engine_for(pool)
    assert isinstance(found, SlurmEngine)
    return found


def cycles(
    engines: list[SlurmEngine], seconds: float, is_enough: Callable[[], bool] = lambda: True
) -> float:
    """Ask engines as a control plane does, for so long at least; return how long it was."""
    begun_s = time.monotonic()
    while time.monotonic() < begun_s + seconds or not is_enough():
        assert time.monotonic() < begun_s + WAIT_S, "nothing goes on asking"
        for engine in engines:
            engine.changes()
            engine.capacity()
        time.sleep(0.05)
    return time.monotonic() - begun_s


def test_eight_partitions_are_asked_about_as_often_as_one(
    tmp_path, slurm_cluster, counted, partitions
):
    book = EngineBook(tmp_path / "data", SystemClock())
    engines = [
        engine_of(book, pool(name, slurm_cluster, counted, partition=name)) for name in partitions
    ]
    cycles(engines, 0.5)
    counted.forget()
    periods = cycles(engines, WATCHED_S, lambda: counted.count("squeue") >= 4) / PERIOD_S
    assert periods / 3 <= counted.count("squeue") <= periods + 1
    assert counted.count("scontrol show node") <= periods / 4 + 1
    assert counted.count("scontrol show partition") <= 2
    assert [len(engine.capacity()) for engine in engines] == [4] * POOLS
    # What was withdrawn is not asked, and nothing goes on asking by itself.
    del engines[1:]
    wait_until(lambda: not any(each.name == "slurm" for each in threading.enumerate()))
    counted.forget()
    time.sleep(2 * PERIOD_S)
    assert counted.count("") == 0
    periods = cycles(engines, 2.0, lambda: counted.count("squeue") >= 2) / PERIOD_S
    assert periods / 3 <= counted.count("squeue") <= periods + 1


def test_each_pool_is_as_fresh_as_it_asks(tmp_path, slurm_cluster, counted):
    book = EngineBook(tmp_path / "data", SystemClock())
    slow = pool("slow", slurm_cluster, counted, poll_ms="60000")
    quick = replace(slow, name="quick", settings={**slow.settings, "poll_ms": "200"})
    slow_engine, quick_engine = engine_of(book, slow), engine_of(book, quick)
    cycles([slow_engine], 1.0)
    assert counted.count("squeue") == 1
    counted.forget()
    both = [slow_engine, quick_engine]
    periods = cycles(both, 3.0, lambda: counted.count("squeue") >= 5) / 0.2
    assert periods / 3 <= counted.count("squeue") <= periods + 1
    counted.forget()
    cycles([slow_engine], 1.0)
    assert counted.count("squeue") == 0


def test_another_way_to_the_cluster_is_asked_by_itself(tmp_path, slurm_cluster, counted):
    (tmp_path / "other").mkdir()
    other = Counted(tmp_path / "other")
    book = EngineBook(tmp_path / "data", SystemClock())
    one = pool("one", slurm_cluster, counted, poll_ms="60000")
    two = replace(one, name="two", settings={**one.settings, "bin": str(other.folder)})
    cycles([engine_of(book, one), engine_of(book, two)], 0.5)
    assert (counted.count("squeue"), other.count("squeue")) == (1, 1)


@pytest.fixture
def known_way(monkeypatch, tmp_path, ssh_server: SshServer) -> str:
    """Let `ssh` reach the server as the user's own configuration would; return where that is."""
    folder = tmp_path / "ssh"
    folder.mkdir()
    options = " ".join((*ssh_server.options, "-o", "GatewayPorts=no"))
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return f"{getpass.getuser()}@127.0.0.1"


def test_pools_over_one_login_node_log_in_once(
    tmp_path, slurm_cluster, counted, partitions, ssh_server, known_way
):
    before = ssh_server.connections()
    data = tmp_path / "data"
    book = EngineBook(data, SystemClock())
    pools = [
        pool(name, slurm_cluster, counted, partition=name, ssh=known_way) for name in partitions
    ]
    pools[0] = replace(pools[0], settings={**pools[0].settings, "reach_replicas": "ssh"})
    engines = [engine_of(book, each) for each in pools]
    periods = cycles(engines, 3.0) / PERIOD_S
    assert ssh_server.connections() == before + 1
    assert periods / 3 <= counted.count("squeue") <= periods + 1
    [record] = (data / "slurm").glob("*/connection")
    way = book._slurm_ways._ways.popitem()[1]
    assert way.transport is not None
    held = int(Tunnel(way.transport).connection())
    # With what uses it goes the process that holds it.
    wait_until(lambda: not any(each.name == "slurm" for each in threading.enumerate()))
    del engines, book, way
    gc.collect()
    wait_until(lambda: not Path(f"/proc/{held}").exists())
    assert record.exists()
