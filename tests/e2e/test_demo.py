"""`moulin demo` for real, with a small model: what it shows, what it leaves, how it is interrupted."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from moulin.app.demo.processes import processes_of
from moulin.runtimes.briefs import Brief
from tests.e2e.test_readme import quoted, said
from tests.real_model import cache_directory, smollm2

MODEL = "smollm2-135m-instruct"
STORY = ["factory", "model", "job", "crash", "refusals", "receipts", "stop"]
PATIENCE_S = 600.0

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(PATIENCE_S)]


def start(folder: Path, *words: str, model: str = MODEL) -> subprocess.Popen[str]:
    """Start the demo as a user would, with the tests' model files."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MOULIN_")}
    environment = {
        **kept,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "MOULIN_MODELS": str(cache_directory() / "store"),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "moulin.cli.main", "demo", "--model", model, "--json", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[dict, str]:
    """Return the one JSON object on stdout, and the words on stderr."""
    out, err = process.communicate(timeout=PATIENCE_S)
    lines = out.splitlines()
    assert len(lines) == 1, err
    return json.loads(lines[0]), err


def step(report: dict, name: str) -> dict:
    return next(each for each in report["steps"] if each["name"] == name)


def test_every_step_holds_and_nothing_is_left(tmp_path):
    smollm2()
    data = tmp_path / "data"
    process = start(tmp_path, "--data", str(data))
    report, words = finish(process)
    assert process.returncode == 0, words
    assert report["ok"]
    assert [each["name"] for each in report["steps"]] == STORY
    assert all(each["ok"] for each in report["steps"])
    assert processes_of(data) == ()
    check_facts(report)
    check_files(data)
    for promised in (
        "the same attempt, generation 1",
        "zone hall-b is building; only an open zone accepts placements",
        "only SE may be used, and zone hall-a is in FR",
        "HTTP 402: project interns has",
        "asserted by the operator",
        "to the millijoule",
        "✓ OK: receipt",
        "✗ FAILED: ",
        "all 6 steps held",
    ):
        assert promised in words
    shown = said(words)
    assert [line for line in quoted() if line not in shown] == []


def check_facts(report: dict) -> None:
    crash, refusals, receipts = (step(report, name) for name in ("crash", "refusals", "receipts"))
    assert crash["control_pid_before"] != crash["control_pid_after"]
    assert (crash["generation"], crash["briefs"]) == (1, 3)
    assert 0 < int(refusals["spent_neur"]) <= int(refusals["budget_neur"])
    assert refusals["answered"] >= 1
    parts = (int(receipts[f"{part}_mj"]) for part in ("allocated", "idle", "unattributed"))
    assert sum(parts) == int(receipts["reading_mj"])
    assert receipts["receipts_mj"] == receipts["allocated_mj"]
    assert receipts["verdict"].startswith("OK")
    assert receipts["forged_verdict"].startswith("FAILED")


def check_files(data: Path) -> None:
    """The briefs obey their schema; the job's key is in its own file and nowhere else."""
    briefs = [json.loads(x) for x in (data / "demo/briefs.jsonl").read_text("utf-8").splitlines()]
    assert [line["document"] for line in briefs] == ["1-fr.txt", "2-de.txt", "3-zh.txt"]
    for line in briefs:
        Brief.model_validate(line["brief"])
        assert line["provenance"]["provider"] == "moulin"
    key_file = data / "demo/press-briefs.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = key_file.read_bytes().strip()
    assert len(key) > 20
    holders = [p for p in data.rglob("*") if p.is_file() and key in p.read_bytes()]
    assert holders == [key_file]
    with sqlite3.connect(data / "moulin.sqlite") as store:
        assert store.execute("pragma integrity_check").fetchone() == ("ok",)


def test_ctrl_c_in_the_middle_stops_everything(tmp_path):
    smollm2()
    process = start(tmp_path, "--keep")
    assert process.stderr is not None
    # By lines, as the rest of what is there is held back; the test's own timeout ends a wait in vain.
    assert any("accepted; the answer came after" in line for line in process.stderr)
    running = processes_of(tmp_path)
    process.send_signal(signal.SIGINT)
    report, words = finish(process)
    assert process.returncode == 128 + signal.SIGINT
    assert not report["ok"]
    assert "stopped by SIGINT" in words
    assert len(running) >= 5  # supervisor, control plane, gateway, two shims and their tasks
    assert processes_of(tmp_path) == ()


@pytest.mark.parametrize(
    ("words", "model", "message"),
    [
        ((), "smollm3", "there is no model 'smollm3'"),
        (("--docs", "absent"), MODEL, "it is no folder"),
        (("--data", "used"), MODEL, "there is a factory already"),
    ],
)
def test_what_cannot_be_played_is_said(tmp_path, words, model, message):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "credentials.json").write_text("{}")
    places = [str(tmp_path / word) if not word.startswith("-") else word for word in words]
    process = start(tmp_path, *places, model=model)
    report, said = finish(process)
    assert process.returncode == 1
    assert message in report["error"]["message"]
    assert "error: " in said
    assert processes_of(tmp_path) == ()
    assert (tmp_path / "used" / "credentials.json").read_text() == "{}"
