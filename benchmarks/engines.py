"""How long from asking for a task until it runs, on each engine, beside asking the engine itself?

For each engine a whole Moulin (one HTTP request, admission, a durable decision, the engine) and the bare
peer start the same program in turn, in random order: a forked process for `local`, `sbatch` for a real
Slurm of four nodes, the Ray job client for a real Ray of two. The program appends the time to a file,
and nobody else is asked when it ran. `overhead_over_bare` is the ratio of the medians. An array of
1,000 elements is compared with 1,000 `sbatch` one after another, on a partition that takes jobs and
starts none, in three turns: it counts until the controller lists all of them.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import _engines_bare as bare
from benchmarks._engines_front import Front, moulin
from benchmarks._moulin import wait_for
from benchmarks._plants import Absent, local_pool, ray_pool, slurm, slurm_pool
from moulin.domain.workload import (
    JobArray,
    Resources,
    TaskTemplate,
    WorkloadKind,
    WorkloadSpec,
)
from tests.ray_cluster import running_ray
from tests.slurm_cluster import SlurmCluster

ENGINES: Final = ("local", "slurm", "ray")
RAN_S_MAX: Final = 180.0
# Samples must not fall into step with whatever is done once a second.
PAUSE_S: Final = (0.05, 0.8)
WARM: Final = 2
RESAMPLES: Final = 2000
ARRAYS: Final = 3
# Slurm's nodes are told to be large enough that a thousand elements have a place at once.
CPUS: Final = 256
MEMORY_MB: Final = 160_000
RESOURCES: Final = Resources(cpu_milli=1000, memory_bytes=100 * 10**6)
Start = Callable[[Path], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how often, and where."""
    parser.add_argument("--samples", type=int, default=50, help="of each side on local and slurm")
    parser.add_argument("--ray-samples", type=int, default=20, help="of each side on ray")
    parser.add_argument("--elements", type=int, default=1000, help="of the array; 0 for none")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--seed", type=int, default=1, help="decides order and pauses")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one engine after another, each with a Moulin of its own."""
    dice = random.Random(options.seed)
    found: dict[str, Any] = {}
    measures = {"local": on_local, "slurm": _slurm, "ray": _ray}
    for engine in options.engines:
        say(f"measuring {engine}")
        with tempfile.TemporaryDirectory(prefix="moulin-engines-") as folder:
            try:
                found |= measures[engine](Path(folder), options, dice)
            except Absent as absent:
                found[engine] = {"absent": str(absent)}
    return found


def on_local(folder: Path, options: argparse.Namespace, dice: random.Random) -> dict[str, Any]:
    """Return the figures of this machine."""
    with moulin(folder, local_pool(1), nodes=1) as front:
        pair = Pair(front, bare.fork, folder, dice)
        return {"local": pair.measure(options.samples)}


def _slurm(folder: Path, options: argparse.Namespace, dice: random.Random) -> dict[str, Any]:
    with slurm(cpus=CPUS, memory_mb=MEMORY_MB) as cluster:
        return on_slurm(folder, cluster, options, dice)


def on_slurm(
    folder: Path, cluster: SlurmCluster, options: argparse.Namespace, dice: random.Random
) -> dict[str, Any]:
    """Return the figures of a Slurm that runs, where nobody else has a job."""
    with moulin(folder, slurm_pool(cluster), nodes=len(cluster.names)) as front:
        peer = bare.Sbatch(cluster)
        pair = Pair(front, peer.start, folder, dice, is_idle=lambda: not listed(cluster))
        found: dict[str, Any] = {"slurm": pair.measure(options.samples)}
        found["slurm"]["version"] = cluster.run("sbatch", "--version")
        if options.elements:
            found |= array_of(front, cluster, peer, options.elements)
        return found


def _ray(folder: Path, options: argparse.Namespace, dice: random.Random) -> dict[str, Any]:
    with (
        running_ray() as cluster,
        moulin(folder, ray_pool(cluster), nodes=2) as front,
        bare.JobClient(cluster) as peer,
    ):
        pair = Pair(front, peer.start, folder, dice, is_idle=peer.is_idle)
        return {"ray": {**pair.measure(options.ray_samples), "version": peer.version}}


@dataclass
class Pair:
    """Moulin and its bare peer, which start the same program in turn."""

    front: Front
    bare: Start
    folder: Path
    dice: random.Random
    is_idle: Callable[[], bool] = lambda: True
    count: int = 0

    def measure(self, samples: int) -> dict[str, Any]:
        """Return the figures of so many starts of each side, in seconds."""
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(WARM + samples):
            sides = [(self._ours, ours), (self.bare_s, theirs)]
            self.dice.shuffle(sides)
            for side, taken in sides:
                time.sleep(self.dice.uniform(*PAUSE_S))
                took_s = side()
                if number >= WARM:
                    taken.append(took_s)
        low, high = interval(ours, theirs, self.dice)
        return {
            "submit_to_running_p50_s": percentile(ours, 50),
            "submit_to_running_p99_s": percentile(ours, 99),
            "overhead_over_bare": round(statistics.median(ours) / statistics.median(theirs), 3),
            "overhead_interval_95": [low, high],
            "bare_p50_s": percentile(theirs, 50),
            "bare_p99_s": percentile(theirs, 99),
            "samples": samples,
        }

    def _ours(self) -> float:
        out = self._next("moulin")
        begin_ns = time.time_ns()
        workload = asked(self.front, out)
        took_s = ran_after_s(out, begin_ns)
        self._settle(lambda: self.front.is_over(workload))
        return took_s

    def bare_s(self) -> float:
        """Return how long the bare peer took."""
        out = self._next("bare")
        begin_ns = time.time_ns()
        self.bare(out)
        took_s = ran_after_s(out, begin_ns)
        self._settle(lambda: True)
        return took_s

    def _settle(self, is_over: Callable[[], bool]) -> None:
        if not wait_for(lambda: is_over() and self.is_idle(), RAN_S_MAX):
            raise RuntimeError("what was started did not end")

    def _next(self, side: str) -> Path:
        self.count += 1
        return self.folder / f"{side}-{self.count}"


def asked(front: Front, out: Path) -> str:
    """Ask Moulin for the program; return the workload."""
    spec = WorkloadSpec(
        kind=WorkloadKind.JOB,
        name=out.name,
        resources=RESOURCES,
        task=TaskTemplate(command=bare.words(out)),
        time_limit_s=600,
    )
    return front.client.workloads.submit(spec, idempotency_key=out.name).id


def ran_after_s(out: Path, begin_ns: int) -> float:
    """Return when the program said that it ran, in seconds after the beginning."""
    until_s = time.monotonic() + RAN_S_MAX
    while not (out.exists() and out.read_bytes().endswith(b"\n")):
        if time.monotonic() > until_s:
            raise RuntimeError(f"{out.name} did not run in {RAN_S_MAX:g} s")
        time.sleep(0.01)
    (line,) = out.read_text().splitlines()
    return (int(line) - begin_ns) / 1e9


def array_of(
    front: Front, cluster: SlurmCluster, peer: bare.Sbatch, elements: int
) -> dict[str, Any]:
    """Return how much sooner Slurm has an array than as many jobs of `sbatch`: the ratio of medians."""
    update = ("scontrol", "update", "PartitionName=batch")
    cluster.run(*update, "State=DOWN")
    try:
        bare_s, ours_s = [], []
        for number in range(ARRAYS):
            say(f"{elements} times sbatch, then an array of {elements}: {number + 1} of {ARRAYS}")
            bare_s.append(submitted_s(cluster, peer, elements))
            ours_s.append(array_s(front, cluster, elements))
    finally:
        cluster.run(*update, "State=UP")
    key = f"array_{elements}"
    return {
        f"{key}_speedup_over_sbatch": round(
            statistics.median(bare_s) / statistics.median(ours_s), 2
        ),
        f"{key}_s": {
            "moulin": [round(each, 3) for each in ours_s],
            "sbatch": [round(each, 3) for each in bare_s],
        },
    }


def submitted_s(cluster: SlurmCluster, peer: bare.Sbatch, jobs: int) -> float:
    """Return how long so many calls of `sbatch` took; their jobs are cancelled again."""
    begin_s = time.monotonic()
    peer.hold(jobs)
    took_s = time.monotonic() - begin_s
    if listed(cluster) != jobs:
        raise RuntimeError(f"Slurm lists {listed(cluster)} of {jobs} jobs")
    peer.cancel()
    wait_for(lambda: not listed(cluster), RAN_S_MAX)
    return took_s


def array_s(front: Front, cluster: SlurmCluster, elements: int) -> float:
    """Return how long after it was submitted Slurm had every element of an array, then stop it."""
    begin_s = time.monotonic()
    view = front.client.workloads.submit(
        WorkloadSpec(
            kind=WorkloadKind.JOB,
            name="array",
            resources=RESOURCES,
            task=TaskTemplate(command=("true",)),
            array=JobArray(size=elements),
            time_limit_s=600,
        )
    )
    until_s = begin_s + 10 * RAN_S_MAX
    while (count := listed(cluster)) < elements:
        if time.monotonic() > until_s:
            raise RuntimeError(f"Slurm lists {count} of {elements} elements")
        time.sleep(0.01)
    took_s = time.monotonic() - begin_s
    front.client.workloads.stop(view.id)
    wait_for(lambda: front.is_over(view.id) and not listed(cluster), RAN_S_MAX)
    return took_s


def listed(cluster: SlurmCluster) -> int:
    """Return how many jobs the controller has that did not end, each element counted."""
    return len(cluster.run("squeue", "-h", "-r", "-o", "%i").split())


def percentile(values: Sequence[float], hundredth: int) -> float:
    """Return the value that so many of a hundred do not pass."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * hundredth // 100)], 4)


def interval(
    ours: Sequence[float], theirs: Sequence[float], dice: random.Random
) -> tuple[float, float]:
    """Return between what the ratio of the medians lies, 95 of 100 times the samples are redrawn."""
    ratios = sorted(
        statistics.median(dice.choices(ours, k=len(ours)))
        / statistics.median(dice.choices(theirs, k=len(theirs)))
        for _ in range(RESAMPLES)
    )
    low, high = (ratios[RESAMPLES * part // 1000] for part in (25, 975))
    return round(low, 3), round(high, 3)


def say(words: str) -> None:
    """Tell how it goes."""
    print(time.strftime("%H:%M:%S"), words, file=sys.stderr, flush=True)
