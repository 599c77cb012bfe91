"""What jobs are given besides a command, as people do it: folders, secrets, inputs and outputs."""

import json
import os
import resource
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks._retention_search import Search
from tests.e2e.conftest import Shell

ABORTS = "import os; os.abort()"
SMALL = ("--cpus", "0.2", "--memory", "100MB", "--time-limit", "1m")
JOB = """
name: {name}
workdir: code
secrets: {{TOKEN: {secret}, KEY: {{file: {secret}}}}}
resources: {{cpus: 0.2, memory: 100MB}}
time_limit: 1m
run: |
  {script}
"""


@pytest.fixture(scope="module")
def mill(tmp_path_factory) -> Iterator[Shell]:
    """A running Moulin whose processes might dump core, if it let them."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (limits[1], limits[1]))
    opened = Shell(tmp_path_factory.mktemp("mill"), is_inside=True)
    try:
        opened.up("--country", "FR")
        yield opened
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, limits)
        opened.close()


def test_a_folder_is_sent_once_and_each_task_starts_in_a_copy(mill):
    code = mill.folder / "project" / "code"
    (code / "sub").mkdir(parents=True)
    (code / "main.sh").write_text("cat sub/word; echo more > made; ls\n")
    (code / "sub" / "word").write_text("grain\n")
    (code / "left.out").write_text("not sent")
    (code / ".gitignore").write_text("*.out\n")
    file = mill.folder / "project" / "job.yaml"
    file.write_text(
        "name: folder\nworkdir: code\nnum_nodes: 1\nresources: {cpus: 0.2, memory: 100MB}\n"
        "time_limit: 1m\nrun: sh main.sh\n"
    )
    before = len(bundles(mill))
    tried = mill.json("run", str(file), "--dry-run")
    assert tried["is_possible"]
    assert len(bundles(mill)) == before
    first = mill.moulin("run", "--follow", str(file))
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.endswith("grain\nmade\nmain.sh\nsub\n")
    assert "moulin: unpacked 4 files" in first.stdout
    assert f"folder {code.resolve()} goes along" in first.stderr
    # Sent again from elsewhere, as a flag: the same folder, whose copy nobody has changed.
    again = mill.json("run", "--workdir", "project/code", *SMALL, "--", "sh", "main.sh")
    mill.until(lambda: mill.json("show", again["id"])["state"] == "succeeded")
    assert again["spec"]["task"]["bundle"] == mill.json("show", "folder")["spec"]["task"]["bundle"]
    assert not (code / "made").exists()
    assert len(bundles(mill)) == before + 1
    digest = again["spec"]["task"]["bundle"]
    assert digest[:12] in mill.moulin("bundles", "list").stdout
    assert mill.moulin("bundles", "delete", digest[:10]).returncode == 0
    assert len(bundles(mill)) == before
    assert mill.moulin("bundles", "delete", digest[:10]).returncode == 1
    away = mill.moulin("run", "--workdir", "project/none", "--", "true")
    assert away.returncode == 1
    assert "it is no folder" in away.stderr


def test_a_secret_reaches_its_task_and_is_nowhere_else(mill):
    word = f"canary{secrets.token_hex(8)}"
    (mill.folder / "code").mkdir(exist_ok=True)
    gate = mill.folder / "gate"
    script = (
        'test "$TOKEN" = "$(cat "$KEY")"; printf %s "$TOKEN" | wc -c; echo "$(basename "$KEY")";'
        f" while [ ! -e {gate} ]; do sleep 0.05; done"
    )
    file = mill.folder / "secret.yaml"
    file.write_text(JOB.format(name="secretive", secret="api-token", script=script))
    refused = mill.moulin("run", str(file))
    assert refused.returncode == 1
    assert "the secret api-token" in refused.stderr
    assert "moulin secrets set" in refused.stderr
    assert mill.moulin("secrets", "set", "api-token", text="first value\n").returncode == 0
    assert mill.moulin("secrets", "set", "api-token", text=f"{word}\n").returncode == 0
    listed = mill.json("secrets", "list")["items"]
    assert [each["name"] for each in listed] == ["api-token"]
    job = mill.json("run", str(file))
    mill.until(lambda: mill.moulin("logs", job["id"]).stdout.endswith("KEY\n"))
    assert mill.moulin("logs", job["id"]).stdout.split()[-2:] == [str(len(word)), "KEY"]
    assert [Path(place).name for place in found(mill.data, word)] == ["KEY"]
    control = json.loads((mill.data / "run.json").read_bytes())["control"]["pid"]
    os.kill(control, signal.SIGABRT)
    crashing = mill.moulin("run", "--follow", str(crash_file(mill)))
    assert crashing.returncode == 134, crashing.stderr
    assert mill.moulin("secrets", "rotate").returncode == 0
    assert [Path(place).name for place in found(mill.folder, word)] == ["KEY"]
    gate.touch()
    mill.until(lambda: mill.json("show", job["id"])["state"] == "succeeded")
    assert found(mill.data, word) == []
    assert mill.moulin("secrets", "delete", "api-token").returncode == 0
    mill.until(lambda: list((mill.data / "secrets").iterdir()) == [])
    assert mill.moulin("secrets", "delete", "api-token").returncode == 1
    assert mill.json("secrets", "list")["items"] == []


def crash_file(mill: Shell) -> Path:
    """Return a job that ends as programs do that dump core, with a secret in its memory."""
    file = mill.folder / "crash.yaml"
    script = f"exec {sys.executable} -I -S -c '{ABORTS}'"
    file.write_text(JOB.format(name="crashing", secret="api-token", script=script))
    return file


def bundles(mill: Shell) -> list[Path]:
    return list((mill.data / "objects").glob("bundle_*"))


def found(folder: Path, word: str) -> list[str]:
    """Return where a word is: files, databases, and every process's command line."""
    search = Search(word)
    search.look([folder, *sorted(Path("/proc").glob("[0-9]*/cmdline"))])
    return search.places


def test_files_are_copied_in_and_out_as_a_job_file_says(mill):
    (mill.folder / "grain").mkdir()
    (mill.folder / "grain" / "rye").write_text("rye\n")
    file = mill.folder / "travail.yaml"
    file.write_text(
        f"nom: mouture\nentrées: {{grain: {mill.folder}/grain}}\n"
        f"sorties: {{farine: 'file://{mill.folder}/out/{{id}}'}}\n"
        "ressources: {processeurs: 0.2, mémoire: 300MB}\ndurée_max: 1m\n"
        "commande: cat grain/* > farine\n"
    )
    done = mill.moulin("run", "--follow", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "moulin: input grain: 1 file(s), 4 bytes" in done.stdout
    assert "moulin: output farine: 1 file(s), 4 bytes" in done.stdout
    job = mill.json("show", "mouture")["id"]
    assert (mill.folder / "out" / job).read_text() == "rye\n"


def test_flags_give_a_command_what_a_job_file_would(mill):
    (mill.folder / "oats").write_text("oats\n")
    assert mill.moulin("secrets", "set", "flour", text="sieved\n").returncode == 0
    given = ("--secret", "WORD=flour", "--input", f"in/grain={mill.folder}/oats")
    kept = ("--output", f"made={mill.folder}/flour.txt", "--stop-signal", "USR1", "--grace", "3s")
    script = 'test "$WORD" = sieved && cat in/grain > made'
    done = mill.moulin("run", "--follow", *SMALL, *given, *kept, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (mill.folder / "flour.txt").read_text() == "oats\n"
    spec = mill.json("show", "sh")["spec"]
    assert (spec["stop_signal"], spec["stop_grace_s"]) == ("USR1", 3)
    refused = mill.moulin("run", "--image", "no image", "--", "true")
    assert (refused.returncode, "is no image" in refused.stderr) == (1, True)
    saved = ("--image", "alpine", "--output", "made=/tmp/x")
    assert "are not saved" in mill.moulin("run", *saved, "--", "true").stderr
    assert mill.moulin("secrets", "delete", "flour").returncode == 0


def test_an_empty_secret_is_refused(mill):
    done = mill.moulin("secrets", "set", "empty", "--json", text="\n")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "invalid_request"
