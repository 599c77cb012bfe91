"""How long does `moulin up` take on an empty data directory, how small is it at rest, how fast to install?

`up_ready_s` is the median over fresh directories from the command to the moment when control API and
gateway both answer. Memory is resident memory after 10 s without requests; the shim is the one of a
task that sleeps. `base_install_s` makes a virtual environment and installs this package with its
locked base dependencies, through pip as it is configured here, without its cache.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._moulin import Running, memory_kb, rss_mb, up
from moulin.domain.workload import Resources, TaskTemplate, WorkloadKind, WorkloadSpec
from moulin.engines.task.spool import read_record
from moulin.sdk import Moulin, read_credentials

ROOT = Path(__file__).parent.parent
# Measured once by us on a 2-core machine of this kind, not in this run; memory is summed RSS.
PEERS = {
    "dstack": {
        "up_ready_s": 39,
        "rss_mb": 250,
        "source": "dstack[server] 0.22.5, `dstack server` on an empty home until HTTP answers",
    },
    "ray": {
        "up_ready_s": 25,
        "rss_mb": 1600,
        "source": "ray[default] 2.60.0: `ray.init()`; memory of `ray start --head`, six processes",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how often, and what to leave out."""
    parser.add_argument("--rounds", type=int, default=5, help="starts; the median counts")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds at rest before memory")
    parser.add_argument("--skip-install", action="store_true", help="leave the installation out")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start, rest, measure, stop; install last."""
    starts = []
    sizes: dict[str, Any] = {}
    for number in range(options.rounds):
        with fresh_directory() as data, up(data) as running:
            starts.append(round(running.ready_s, 2))
            if number == options.rounds - 1:
                sizes = measure(running, options.settle)
    return {
        "up_ready_s": round(statistics.median(starts), 2),
        "control_rss_mb": sizes["control"],
        "gateway_rss_mb": sizes["gateway"],
        "shim_rss_mb": sizes["shim"],
        "base_install_s": None if options.skip_install else install_s(),
        "starts_s": starts,
        "supervisor_rss_mb": sizes["supervisor"],
        "shim_own_mb": sizes["shim_own"],
        "settle_s": options.settle,
        "peers": PEERS,
    }


@contextlib.contextmanager
def fresh_directory() -> Any:
    """Give a data directory that does not exist yet."""
    with tempfile.TemporaryDirectory(prefix="moulin-bench-") as name:
        yield Path(name) / "data"


def measure(running: Running, settle_s: float) -> dict[str, float]:
    """Return resident MB of each process at rest, and of the shim of a sleeping task."""
    time.sleep(settle_s)
    facts = running.facts
    sizes = {name: rss_mb(int(facts[f"{name}_pid"])) for name in ("control", "gateway")}
    sizes["supervisor"] = rss_mb(int(facts["pid"]))
    shim = start_idle_task(running)
    time.sleep(min(settle_s, 3.0))
    held = memory_kb(shim, ("VmRSS:", "RssAnon:"))
    sizes["shim"] = round(held["VmRSS:"] * 1024 / 1e6, 1)
    sizes["shim_own"] = round(held["RssAnon:"] * 1024 / 1e6, 1)
    return sizes


def start_idle_task(running: Running) -> int:
    """Run a task that sleeps and return the pid of its shim."""
    spec = WorkloadSpec(
        kind=WorkloadKind.JOB,
        name="idle",
        resources=Resources(cpu_milli=100, memory_bytes=50 * 10**6),
        task=TaskTemplate(command=("sleep", "600")),
        time_limit_s=900,
    )
    credentials = read_credentials(Path(running.facts["credentials_file"]))
    with Moulin(credentials=credentials) as client:
        job = client.workloads.submit(spec).id
        until_s = time.monotonic() + 30
        while client.workloads.get(job).state != "running":
            assert time.monotonic() < until_s, "the idle task did not start"
            time.sleep(0.05)
    (started,) = (running.data / "spool").glob("*/0/started")
    record = read_record(str(started))
    assert record is not None
    return int(record["pid"])


def install_s() -> float:
    """Return the seconds for a new environment with this package and its base dependencies."""
    # Made under temporary files, where nothing of this package's environment is found.
    with tempfile.TemporaryDirectory(prefix="moulin-install-") as name:
        folder = Path(name)
        source = folder / "source"
        kept = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks", "docs")
        shutil.copytree(ROOT, source, ignore=kept)
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTHON"))},
            "PIP_NO_CACHE_DIR": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        begin_s = time.monotonic()
        subprocess.run([_base_python(), "-m", "venv", str(folder / "venv")], check=True)
        pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "-qq"]
        lock = str(ROOT / "requirements" / "base.txt")
        own = ["--no-deps", "--no-build-isolation", str(source)]
        for words in (["--require-hashes", "-r", lock], own):
            subprocess.run([*pip, *words], check=True, env=environment, stdout=sys.stderr)
        took_s = time.monotonic() - begin_s
        command = [str(folder / "venv" / "bin" / "moulin"), "version"]
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
        return round(took_s, 1)


def _base_python() -> str:
    """Return the interpreter outside any virtual environment."""
    return str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
