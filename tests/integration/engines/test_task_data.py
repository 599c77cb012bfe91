"""Folders, inputs and outputs of tasks with a real shim, real files and a real S3-compatible server."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import OutputsWhen, TaskTemplate
from moulin.engines.local.engine import LocalEngine
from moulin.engines.task.data import MOVER
from moulin.engines.task.shim import stat_fields
from moulin.engines.task.spool import step_files
from moulin.sdk._bundle import packed
from tests.conformance.engine_bench import (
    RealClock,
    make_step,
    nodes_of_this_machine,
    wait_until,
)
from tests.object_server import KEYS


@pytest.fixture
def engine(tmp_path) -> LocalEngine:
    return LocalEngine(tmp_path / "data", clock=RealClock(), nodes=nodes_of_this_machine())


def run(engine, name, command, *, handed=None, **task):
    template = TaskTemplate(command=("sh", "-c", command), **task)
    step = replace(make_step(name, template), **(handed or {}))
    engine.start(step)
    wait_until(lambda: engine.observe([step.step])[0].phase is TaskPhase.EXITED)
    code = engine.observe([step.step])[0].exit_code
    return code, engine.logs(step.step, 0, 1 << 20).data.decode()


def bundle_of(folder: Path, target: Path) -> str:
    with packed(folder) as found:
        target.write_bytes(found.stream.read())
        return found.sha256


def test_a_task_starts_in_a_copy_of_its_folder(engine, tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "run.sh").write_text("#!/bin/sh\necho in $(basename $PWD); pwd; cat word\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "word").write_text("grain\n")
    digest = bundle_of(folder, tmp_path / "bundle")
    handed = {"bundle_path": str(tmp_path / "bundle")}
    code, log = run(engine, "a", "./run.sh", handed=handed, bundle=digest, setup="test -e word")
    lines = log.splitlines()
    assert (code, lines[1], lines[3]) == (0, "in work", "grain")
    assert lines[2].startswith(str(tmp_path / "data"))
    code, log = run(engine, "b", "true", handed=handed, bundle="0" * 64)
    assert (code, log) == (125, "moulin: the bundle is damaged; submit the job again\n")
    code, log = run(engine, "c", "exec no-such-program", handed=handed, bundle=digest)
    assert code == 127


def test_files_are_copied_in_and_out(engine, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "x").write_text("x")
    (tmp_path / "one").write_text("one")
    inputs = {"data": f"file://{tmp_path}/in", "deep/model": f"{tmp_path}/one"}
    outputs = {"made": f"{tmp_path}/out/{{id}}", "word": f"{tmp_path}/out/{{index}}.txt"}
    script = "mkdir -p made/sub; cat data/sub/x deep/model | tee made/sub/all > word"
    code, log = run(engine, "a", script, inputs=inputs, outputs=outputs)
    assert code == 0, log
    digest = hashlib.sha256(b"one").hexdigest()
    told = rf"input deep/model: 1 file\(s\), 3 bytes in \d+\.\d s, sha256 {digest}"
    assert re.search(told, log), log
    [made] = (tmp_path / "out").glob("job_*/sub/all") or list((tmp_path / "out").glob("*/sub/all"))
    assert made.read_text() == "xone"
    assert (tmp_path / "out" / "0.txt").read_text() == "xone"


@pytest.mark.parametrize(
    ("script", "when", "code", "is_saved"),
    [
        ("echo x > o", OutputsWhen.SUCCESS, 0, True),
        ("echo x > o; exit 3", OutputsWhen.SUCCESS, 3, False),
        ("echo x > o; exit 3", OutputsWhen.ALWAYS, 3, True),
        ("echo x > o; kill -9 $$", OutputsWhen.ALWAYS, 137, True),
        ("echo x > o; kill -TERM $$", OutputsWhen.SUCCESS, 143, False),
        ("true", OutputsWhen.SUCCESS, 125, False),
        ("exit 4", OutputsWhen.ALWAYS, 4, False),
    ],
)
def test_a_task_ends_as_its_program_did(engine, tmp_path, script, when, code, is_saved):
    target = tmp_path / "saved"
    outputs = {"o": str(target)}
    ended, log = run(engine, "a", script, outputs=outputs, outputs_when=when)
    assert (ended, target.exists()) == (code, is_saved), log


def test_a_stop_reaches_the_program_and_its_outputs_are_saved(engine, tmp_path):
    script = "trap 'echo saved > o; exit 0' USR1; echo ready; while true; do sleep 0.05; done"
    template = TaskTemplate(command=("sh", "-c", script), outputs={"o": str(tmp_path / "saved")})
    step = replace(make_step("a", template), stop_signal="USR1", stop_grace_s=30)
    engine.start(step)
    wait_until(lambda: engine.logs(step.step, 0, 100).data == b"ready\n")
    engine.stop(step.step, 30)
    wait_until(lambda: engine.observe([step.step])[0].phase is TaskPhase.EXITED)
    assert engine.observe([step.step])[0].exit_code == 0
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_what_is_not_there_is_said(engine, tmp_path):
    code, log = run(engine, "a", "true", inputs={"x": f"{tmp_path}/none"})
    assert (code, log) == (125, f"moulin: {tmp_path}/none: there is no such file or object\n")
    image = TaskTemplate(command=("true",), image="alpine", outputs={"o": "/tmp/o"})
    with pytest.raises(EngineRefused, match="outputs of a program in an image"):
        engine.start(make_step("b", image))


def test_only_the_first_of_a_gang_saves_what_has_one_place(engine, tmp_path):
    nodes = nodes_of_this_machine(2)
    both = LocalEngine(tmp_path / "gang", clock=RealClock(), nodes=nodes)
    outputs = {"o": f"{tmp_path}/o", "each": f"{tmp_path}/each-{{rank}}"}
    template = TaskTemplate(command=("sh", "-c", "echo $RANK > o; cp o each"), outputs=outputs)
    steps = [make_step("g", template, rank=rank, nodes=[n.node for n in nodes]) for rank in (0, 1)]
    for step in steps:
        both.start(step)
    names = [step.step for step in steps]
    wait_until(lambda: all(seen.phase is TaskPhase.EXITED for seen in both.observe(names)))
    assert (tmp_path / "o").read_text() == "0\n"
    assert [(tmp_path / f"each-{rank}").read_text() for rank in (0, 1)] == ["0\n", "1\n"]


def test_objects_of_a_store_come_once_to_a_node_and_results_go_there(engine, store, tmp_path):
    env = {"AWS_ENDPOINT_URL": store, "MOULIN_INPUT_CACHE": str(tmp_path / "cache")}
    task = {
        "env": env,
        "inputs": {"set": "s3://grain/set", "one": "s3://grain/set/deep/b"},
        "outputs": {"out": "s3://grain/results/{index}"},
    }
    script = "mkdir -p out; wc -c < set/a > out/size; cat set/deep/b one > out/both; ls -A set"
    code, log = run(engine, "a", script, handed={"secrets": KEYS}, **task)
    assert code == 0, log
    assert "input set: 2 file(s), 6,004 bytes" in log
    assert "from this node's cache" in log  # the object that two inputs have
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in log
    [line] = [line for line in log.splitlines() if "output out: 2 file(s)" in line]
    code, log = run(engine, "b", "cat back/both back/size", handed={"secrets": KEYS}, env=env,
                    inputs={"back": "s3://grain/results/0", "set": "s3://grain/set"})  # fmt: skip
    assert code == 0, log
    assert "rye\nrye\n6000\n" in log
    assert "input set: 2 file(s), 6,004 bytes" in log
    assert "2 from this node's cache" in log
    assert line.rpartition(" ")[2] in log
    # What was kept and then spoilt is noticed by its digest, and fetched again.
    for kept in (tmp_path / "cache").iterdir():
        kept.write_bytes(b"x" * kept.stat().st_size)
    code, log = run(engine, "c", "cat set/deep/b", handed={"secrets": KEYS}, env=env,
                    inputs={"set": "s3://grain/set"})  # fmt: skip
    assert (code, "rye\n" in log, "cache" in log) == (0, True, False)


def moved(tmp_path, doing, **plan) -> tuple[int, str]:
    """Run the mover by a Python without libraries; return its status and words."""
    path = tmp_path / "plan"
    path.write_text(json.dumps({"inputs": {}, "outputs": {}, "project": "p", **plan}))
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-I", "-S", MOVER, doing, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    return done.returncode, done.stderr


def test_paths_are_copied_without_any_library(tmp_path):
    there = tmp_path / "there"
    (there / "deep").mkdir(parents=True)
    (there / "deep" / "x").write_text("x")
    (there / "a.b").write_text("ab")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "y").write_text("y")
    (there / "linked").symlink_to(tmp_path / "far")
    (there / "z").symlink_to(there / "a.b")
    os.mkfifo(there / "pipe")  # nobody would ever write to it
    code, words = moved(tmp_path, "in", inputs={"here": str(there)})
    assert code == 0, words
    here = tmp_path / "here"
    copied = {
        str(path.relative_to(here)): path.read_text() for path in here.rglob("*") if path.is_file()
    }
    assert copied == {"deep/x": "x", "a.b": "ab", "linked/y": "y", "z": "ab"}
    assert not (here / "linked").is_symlink()
    # What is saved has the same digest as what was copied, as names are in one order.
    saved = moved(tmp_path, "out", outputs={"here": str(tmp_path / "back")})
    assert saved[0] == 0, saved[1]
    assert saved[1].rpartition(" ")[2] == words.rpartition(" ")[2]


def test_what_cannot_be_copied_whole_is_not_copied(tmp_path):
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "again").symlink_to(tmp_path / "round")
    code, words = moved(tmp_path, "in", inputs={"x": str(tmp_path / "round")})
    assert (code, "a link to a folder that it is in" in words) == (1, True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "link").symlink_to("nowhere")
    code, words = moved(tmp_path, "in", inputs={"x": str(tmp_path / "broken")})
    assert (code, "there is no such file" in words) == (1, True)
    (tmp_path / "empty").mkdir()
    assert (
        "there is nothing there" in moved(tmp_path, "in", inputs={"x": str(tmp_path / "empty")})[1]
    )
    assert "neither a file nor a folder" in moved(tmp_path, "in", inputs={"x": "/dev/null"})[1]


def test_without_the_library_it_says_what_to_install(tmp_path):
    code, words = moved(tmp_path, "in", inputs={"x": "s3://grain/set"})
    assert code == 1
    assert "pip install 'moulin[s3]'" in words


def test_a_shim_that_dies_takes_program_and_wrapper_along(engine, tmp_path):
    template = TaskTemplate(command=("sh", "-c", "echo $$; exec sleep 60"), outputs={"o": "/tmp/o"})
    step = make_step("a", template)
    claim = engine.start(step)
    files = step_files(tmp_path / "data" / "spool", step.step)
    wait_until(lambda: Path(files.log).read_text().endswith("\n"))
    program = int(Path(files.log).read_text())
    os.kill(claim.pid, signal.SIGKILL)
    wait_until(lambda: engine.observe([step.step])[0].phase is TaskPhase.GONE)
    assert (stat_fields(program) or [b"Z"])[0] == b"Z"  # at most waiting for its new parent
