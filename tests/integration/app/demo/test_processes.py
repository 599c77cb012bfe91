"""The search for what a data directory left running sees commands and environments, and not itself."""

import os
import subprocess
import sys

from moulin.app.demo.processes import command_of, processes_of

WAIT = "import sys; print('on', flush=True); sys.stdin.read()"


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_commands_and_environments_are_searched(tmp_path):
    by_word, by_variable = start(f"--data={tmp_path}"), start(PLACE=f"{tmp_path}/spool")
    with start(), by_word, by_variable:
        found = {mark.pid for mark in processes_of(tmp_path)}
        assert found == {by_word.pid, by_variable.pid}
        assert f"--data={tmp_path}" in command_of(by_word.pid)
    assert processes_of(tmp_path) == ()
    assert command_of(by_word.pid) == ""


def test_the_searcher_and_who_started_it_do_not_count(tmp_path):
    search = (
        "import sys, pathlib; from moulin.app.demo.processes import processes_of; "
        "print(len(processes_of(pathlib.Path(sys.argv[1]))))"
    )
    shell = f"{sys.executable} -c '{search}' {tmp_path}; true"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
