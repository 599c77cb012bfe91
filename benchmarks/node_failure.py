"""Is a broken node noticed and its work running elsewhere, and is work on a silent node left alone?

A failure comes with evidence: the driver tells of a fatal XID, of an uncorrected error or no longer of
a device (`local`, two nodes, the real `nvidia-ml-py` over replayed counters; `slurm`, four nodes, a gang
of three with readers beside its tasks), the power of a node goes and Slurm gives it up, a server is
switched off and on (`ray`). The gang has to go on without the struck node. A silence
has none: slurmd does not answer for a moment, slurmctld does not, the line to the cluster is cut, Ray
or its agent on a server dies while the tasks live on. Tasks say in files of their own that they run. Times are
from the blow, `restarted_s` until the last task of the gang's next generation has begun;
`wrongly_restarted` counts generations that nothing but a silence had come before, and those that began
while the one before still ran.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks import _node_failure_local, _node_failure_ray, _node_failure_slurm
from benchmarks._node_failure_watch import Case
from benchmarks._plants import Absent

ENGINES: Final = {
    "local": _node_failure_local.cases,
    "slurm": _node_failure_slurm.cases,
    "ray": _node_failure_ray.cases,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say where, and how often each kind."""
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=tuple(ENGINES))
    parser.add_argument("--rounds", type=int, default=2, help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=(), help="only these kinds; all by default")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Go through all kinds on one engine after another."""
    begin_s = time.monotonic()
    found: list[Case] = []
    absent: dict[str, str] = {}
    for engine in options.engines:
        with tempfile.TemporaryDirectory(prefix="moulin-failure-") as folder:
            try:
                found += ENGINES[engine](Path(folder), options.rounds, tuple(options.kinds))
            except Absent as reason:
                absent[engine] = str(reason)
    return summary(found) | {"absent": absent, "seconds": round(time.monotonic() - begin_s)}


def summary(cases: Sequence[Case]) -> dict[str, Any]:
    """Return the figures of all cases; a time that never came makes its figure None."""
    failures = [case for case in cases if case.is_failure]
    silences = [case for case in cases if not case.is_failure]
    return {
        "failures": len(failures),
        "noticed_s_max": _longest([case.noticed_s for case in failures]),
        "restarted_s_max": _longest([case.restarted_s for case in failures]),
        "wrongly_restarted": sum(len(case.wrongs) for case in cases),
        "silences": len(silences),
        "silences_noticed": sum(case.noticed_s is not None for case in silences),
        "cases": [asdict(case) for case in cases],
    }


def _longest(times: Sequence[float | None]) -> float | None:
    known = [each for each in times if each is not None]
    return max(known) if known and len(known) == len(times) else None
