"""One table, engine by behaviour, from one run of the suite: `python -m tests.conformance.table`.

A cell says how many tests passed of those that ran; a dash, that the engine cannot be asked. The table
is kept in docs/conformance.md when everything ran and nothing failed. Any other words go to pytest.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.ray_cluster import LOCK
from tests.slurm_cluster import SUITES, programs_of

ROOT = Path(__file__).resolve().parent.parent.parent
KEPT = ROOT / "docs" / "conformance.md"
SUITE = "tests/conformance/test_engine.py"
TITLES = {
    "local": "local",
    "local-without-cgroup": "local, no cgroup",
    "podman": "local, image (Podman)",
    "apptainer": "local, image (Apptainer)",
    "simulated": "simulated",
    "slurm": "Slurm",
    **{f"slurm-{suite}": f"Slurm of {suite}" for suite in SUITES},
    "ray": "Ray",
    "kubernetes": "Kubernetes (stand-in)",
}
ORDER = (
    *("gang start", "exit codes", "signals", "stop with grace", "log cursors", "idempotent start"),
    *("adoption", "capacity", "unreachable is not gone", "fencing", "effects", "forgetting"),
)
ABOUT = """\
# Conformance

Every engine keeps the same promises to the control plane; one suite,
`{suite}`, asks all of them, and `make conformance` writes this table.
A cell is tests passed of tests run; a dash is what an engine cannot be asked: nothing really runs there.
Written on {day} with {versions}.

{table}
**Slurm** is one slurmctld with four slurmd, that of this machine and those of later Debian releases, and
**Ray** two nodes, all on one machine. The column of **Kubernetes** is a stand-in that stores objects as
the API does and plays what pods do: the engine has not yet run on a live cluster. **Simulated** is what
plans are tried on; it computes nothing.
"""


@dataclass
class Results:
    """What each test of the suite said, by behaviour and engine; a plugin of pytest."""

    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: Sequence[pytest.Function]) -> None:
        """Note which behaviour and engine each test is about."""
        for item in items:
            marker = item.get_closest_marker("behaviour")
            if marker is not None:
                self.places[item.nodeid] = (marker.args[0], str(item.callspec.params["bench"]))

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Forget tests that nobody wants to run this time."""
        for item in items:
            self.places.pop(item.nodeid, None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a test ended; what failed before or after it failed, too."""
        if report.outcome != "passed":
            self.said[report.nodeid] = report.outcome
        elif report.when == "call":
            self.said.setdefault(report.nodeid, report.outcome)


def tabulate(places: Mapping[str, tuple[str, str]], said: Mapping[str, str]) -> str:
    """Return the table in Markdown: behaviours as in `ORDER`, engines as in `TITLES`."""
    engines = [name for name in TITLES if any(engine == name for _, engine in places.values())]
    asked = {behaviour for behaviour, _ in places.values()}
    behaviours = [*(name for name in ORDER if name in asked), *sorted(asked.difference(ORDER))]
    rows = [["behaviour", *(TITLES[name] for name in engines)]]
    for behaviour in behaviours:
        cells = []
        for engine in engines:
            tests = [test for test, place in places.items() if place == (behaviour, engine)]
            cells.append(_cell([said.get(test, "not run") for test in tests]))
        rows.append([behaviour, *cells])
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return "".join(f"{_line(row, widths)}\n" for row in rows)


def _cell(said: Sequence[str]) -> str:
    if not said:
        return "-"
    passed = said.count("passed")
    words = f"{passed}/{len(said)}"
    if "failed" in said:
        return f"{words} FAILED"
    return words if passed == len(said) else f"{words}, others did not run"


def _line(row: Iterable[str], widths: Sequence[int]) -> str:
    return (
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
    )


def versions() -> str:
    """Return what the engines were, in words."""
    newer = (_version_of(suite) for suite in SUITES)
    found = [_version("slurmctld", "-V"), *newer, _version("podman", "--version")]
    ray = next(line for line in LOCK.read_text("utf-8").splitlines() if line.startswith("ray=="))
    return ", ".join([*(words for words in found if words), ray.partition(" ")[0]])


def _version_of(suite: str) -> str:
    try:
        return f"{_said(f'{programs_of(suite)}/slurmctld', '-V')} ({suite})"
    except LookupError:
        return ""


def _version(program: str, option: str) -> str:
    path = shutil.which(program, path=f"{Path('/usr/sbin')}:/usr/bin:/usr/local/bin:/bin")
    return _said(path, option) if path is not None else ""


def _said(program: str, option: str) -> str:
    return subprocess.run(
        [program, option], capture_output=True, text=True, check=False
    ).stdout.strip()


def main(words: Sequence[str]) -> int:
    """Run the suite, print its table, and keep it if it is whole and green."""
    results = Results()
    status = int(pytest.main([SUITE, "-q", *words], plugins=[results]))
    table = tabulate(results.places, results.said)
    print(f"\n{table}")
    is_whole = set(results.places) == {t for t, said in results.said.items() if said == "passed"}
    if status == 0 and is_whole and not words:
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        KEPT.write_text(
            ABOUT.format(suite=SUITE, day=day, versions=versions(), table=table), "utf-8"
        )
        print(f"kept in {KEPT.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
