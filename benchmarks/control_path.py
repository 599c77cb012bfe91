"""How many jobs a second get from an HTTP request to a start, each acknowledged only when durable?

One job per request; the load generator is its own process; the engine is simulated, with 1,250
nodes; a start is when the engine began the task, by its own clock. Peer: sbatch, 28 to 46 a second
(Slurm 22.05.8 on a machine of this size). Bound: one fdatasync per commit of this disk.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks._factory import RunningControl, control
from moulin.domain.factory import Pool

PEER_SBATCH_PER_S = (28, 46)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of the two runs."""
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of the closed-loop run")
    parser.add_argument("--seconds", type=int, default=30, help="length of the open-loop run")
    parser.add_argument("--rate", type=int, default=500, help="jobs a second of the open loop")
    parser.add_argument("--nodes", type=int, default=1250, help="simulated nodes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run both loops on one control process."""
    pool = Pool(
        name="pool",
        zone="local",
        engine="simulated",
        machine_class="simulated",
        settings={"nodes": str(options.nodes)},
    )
    with control(pool) as running:
        time.sleep(2)
        open_loop = drive(running, "open", options.rate * options.seconds, options.rate, 256)
        closed = drive(running, "closed", options.jobs, 0, 128)
        cpu_s = process_cpu_s(running.process.pid)
    jobs = closed["jobs"] + open_loop["jobs"]
    return {
        "submit_to_start_per_s": closed["per_s"],
        "p99_ms_at_500_per_s": open_loop["p99_ms"] if options.rate == 500 else None,
        "jobs": jobs,
        "durable": closed["durable"] and open_loop["durable"],
        "p50_ms_at_rate": open_loop["p50_ms"],
        "p99_ms_at_rate": open_loop["p99_ms"],
        "rate": options.rate,
        "ack_p99_ms_at_rate": open_loop["ack_p99_ms"],
        "control_cpu_us_per_job": round(cpu_s * 1e6 / jobs, 1),
        "fdatasync_ms": fdatasync_ms(),
        "peer_sbatch_per_s": PEER_SBATCH_PER_S,
        "nodes": options.nodes,
    }


def drive(
    running: RunningControl, prefix: str, jobs: int, rate: float, connections: int
) -> dict[str, Any]:
    """Submit jobs from another process and join its times with the durable rows."""
    out = running.data_dir / f"{prefix}.json"
    command = [sys.executable, "-m", "benchmarks._submit", str(out), running.url, running.key]
    subprocess.run([*command, prefix, str(jobs), str(rate), str(connections)], check=True)
    times = json.loads(out.read_text())
    started = wait_started(running, prefix, jobs)
    waits_ms = sorted((started[n] - times["sent"][n]) / 1e6 for n in times["sent"] if n in started)
    acks_ms = sorted((times["answered"][n] - times["sent"][n]) / 1e6 for n in times["sent"])
    span_s = (max(started.values()) - min(times["sent"].values())) / 1e9
    return {
        "jobs": len(started),
        "per_s": round(len(started) / span_s, 1),
        "p50_ms": round(waits_ms[len(waits_ms) // 2], 2),
        "p99_ms": round(waits_ms[len(waits_ms) * 99 // 100], 2),
        "ack_p99_ms": round(acks_ms[len(acks_ms) * 99 // 100], 2),
        "durable": len(started) == jobs and not times["failed"],
    }


def wait_started(running: RunningControl, prefix: str, jobs: int) -> dict[str, int]:
    """Return start times by job name from the database, read beside the running process."""
    until = time.monotonic() + 60
    path = running.data_dir / "moulin.sqlite"
    while True:
        found = _started(path, prefix)
        if len(found) >= jobs or time.monotonic() > until:
            return found
        time.sleep(0.5)


def _started(path: Path, prefix: str) -> dict[str, int]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows = connection.execute(
            "select name, body from workloads where name like ?", (f"{prefix}-%",)
        )
        found = {name: int(json.loads(body)["started_at_ns"]) for name, body in rows}
        return {name: at_ns for name, at_ns in found.items() if at_ns}
    finally:
        connection.close()


def process_cpu_s(pid: int) -> float:
    """Return the user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fdatasync_ms() -> float:
    """Return the mean time of one small durable write in the temporary directory."""
    path = Path("/tmp") / f"moulin-sync-{os.getpid()}"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        begin = time.perf_counter()
        for _ in range(100):
            os.write(descriptor, b"x" * 4096)
            os.fdatasync(descriptor)
        return round((time.perf_counter() - begin) * 10, 3)
    finally:
        os.close(descriptor)
        path.unlink()
