"""`python -m tests.simulation`: many seeds and the planted bugs, or one seed again.

The last line is one JSON object. Exit status 1 means a violated invariant or a plant not found.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.simulation.plants import PLANTS, Found, search
from tests.simulation.run import Result, simulate

KEPT = Path(__file__).parent / "seeds.txt"
SEEDS = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many seeds to run")
    parser.add_argument("--seed", type=int, help="replay one seed, without the planted bugs")
    parser.add_argument("--json", action="store_true", help="the last line alone")
    asked = parser.parse_args(arguments)
    is_replay = asked.seed is not None
    seeds = [asked.seed] if is_replay else wanted_seeds(asked.seeds)
    results = list(_simulated(seeds, is_shown=not asked.json))
    plants = () if is_replay else tuple(_searched(is_shown=not asked.json))
    found = sum(each.result is not None for each in plants)
    summary = {
        "seeds": len(results),
        "steps": sum(each.steps for each in results),
        "violations": sum(bool(each.violation) for each in results),
        "planted_bugs": len(plants),
        "planted_bugs_found": found,
        "hash": hash_of(results),
    }
    print(json.dumps(summary))
    return int(bool(summary["violations"]) or found < len(plants))


def wanted_seeds(count: int) -> list[int]:
    """Return the kept seeds, then the first `count`."""
    lines = KEPT.read_text(encoding="ascii").splitlines()
    kept = [int(line) for line in lines if line.strip() and not line.startswith("#")]
    return list(dict.fromkeys([*kept, *range(count)]))


def hash_of(results: Iterable[Result]) -> str:
    """Return the hash of all histories in order of seed."""
    whole = hashlib.sha256()
    for each in sorted(results, key=lambda result: result.seed):
        whole.update(f"{each.seed} {each.history}\n".encode())
    return whole.hexdigest()


def report(result: Result) -> str:
    """Return what somebody needs to understand a violation."""
    lines = [
        f"seed {result.seed}, step {result.steps}: {result.violation}",
        *(f"    {action}" for action in result.actions),
        *result.trace.splitlines(),
        f"make sim SEED={result.seed}   # again; keep it in tests/simulation/seeds.txt",
    ]
    return "\n".join(lines)


def _simulated(seeds: Sequence[int], *, is_shown: bool) -> Iterable[Result]:
    for seed in seeds:
        result = simulate(seed)
        if result.violation:
            print(report(result), file=sys.stderr)
        elif is_shown:
            print(f"seed {seed}: {result.steps} steps, history {result.history}")
        yield result


def _searched(*, is_shown: bool) -> Iterable[Found]:
    for plant in PLANTS:
        found = search(plant)
        if found.result is None:
            print(f"plant {found.plant}: NOT FOUND in {found.seeds} seeds", file=sys.stderr)
        elif is_shown:
            print(f"plant {found.plant}: seed {found.seeds}: {found.result.violation[:100]}")
        yield found


if __name__ == "__main__":
    sys.exit(main())
