"""The conformance of a runtime that is too large for every run of the tests: vLLM, for real.

It runs what `make conformance RUNTIME=vllm` runs (the suite of every runtime, then a checkpoint
through a whole Moulin) and keeps what each test said.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TESTS = "tests/conformance"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes."""
    parser.add_argument("--runtime", default="vllm", help="name of the runtime")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the tests and return what each of them said."""
    files = [f"{TESTS}/test_runtimes.py", f"{TESTS}/test_runtime_{options.runtime}.py"]
    files = [file for file in files if (ROOT / file).exists()]
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", *files, "-q", f"--junitxml={report}"],
            cwd=ROOT,
            env={**os.environ, "RUNTIME": options.runtime},
            stdout=sys.stderr,
            check=False,
        )
        tests = outcomes(report.read_text("utf-8"))
    return {
        "runtime": options.runtime,
        "packages": packages(options.runtime),
        "passed": sum(said == "passed" for said in tests.values()),
        "failed": sum(said == "failed" for said in tests.values()),
        "skipped": sum(said == "skipped" for said in tests.values()),
        "duration_s": round(time.monotonic() - begun_s),
        "tests": tests,
    }


def outcomes(report: str) -> dict[str, str]:
    """Return what each test of a JUnit report said, by its name.

    >>> outcomes('<testsuite><testcase name="a"/><testcase name="b"><failure/></testcase></testsuite>')
    {'a': 'passed', 'b': 'failed'}
    """
    found = {}
    for case in ET.fromstring(report).iter("testcase"):
        kinds = {child.tag for child in case}
        said = "failed" if kinds & {"failure", "error"} else "passed"
        found[str(case.get("name"))] = "skipped" if "skipped" in kinds else said
    return found


def packages(runtime: str) -> list[str]:
    """Return what the runtime's lock names as wanted, with versions."""
    lock = ROOT / "src" / "moulin" / "runtimes" / "locks" / f"{runtime}.in"
    if not lock.exists():
        return []
    lines = (line.partition("#")[0].strip() for line in lock.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-")]
