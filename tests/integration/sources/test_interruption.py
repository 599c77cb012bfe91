"""A fetch that is killed, starved of disk or raced: nothing half-made shows, nothing starts over."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moulin.sources.fetch import fetch_variant
from tests.integration.sources.model_server import ModelServer

DATA = random.Random(3).randbytes(600_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SCRIPT = """
import resource, sys
from pathlib import Path
from moulin.domain.errors import MoulinError
from tests.integration.sources.test_interruption import hub_choice
from moulin.sources.fetch import FetchSettings, fetch_variant
endpoint, store, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    found = fetch_variant(hub_choice(), store, settings=FetchSettings(hub_endpoint=endpoint))
    print("cached" if found.is_cached else "fetched")
except MoulinError as error:
    print(error.code, error.message, error.hint, sep="|")
"""


def hub_choice():
    from moulin.domain.model import SourceChoice
    from tests.integration.sources.test_hub import MODEL, SOURCE

    return SourceChoice(model=MODEL, variant=MODEL.variants[0], source=SOURCE, explanation="")


@pytest.fixture(autouse=True)
def hub_file(server: ModelServer) -> None:
    server.hub["maker/model-gguf/model-q4.gguf"] = DATA


def start(server: ModelServer, store: Path, limit: int = 0, before: tuple[str, ...] = ()):
    return subprocess.Popen(
        [*before, sys.executable, "-c", SCRIPT, server.url, str(store), str(limit)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": "src:."},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    return output.strip()


def wait_for(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 30 s")


def models_in(store: Path) -> list[Path]:
    return sorted((store / "models").rglob("*.gguf")) if (store / "models").exists() else []


def test_a_killed_fetch_is_continued_where_it_stopped(server, settings, tmp_path) -> None:
    part = tmp_path / "partial" / f"{SHA256}.part"
    server.faults.pause_after_bytes = 300_000
    process = start(server, tmp_path)
    wait_for(lambda: part.exists() and part.stat().st_size >= 250_000)
    process.send_signal(signal.SIGKILL)
    assert said(process) == ""
    assert models_in(tmp_path) == []
    kept = part.stat().st_size
    server.faults.go_on.set()
    fetched = fetch_variant(hub_choice(), tmp_path, settings=settings)
    assert Path(fetched.path).read_bytes() == DATA
    assert server.starts(f"/blobs/{SHA256}") == [0, kept]


def test_two_processes_fetch_one_file_once(server, tmp_path) -> None:
    server.faults.pause_after_bytes = 300_000
    part = tmp_path / "partial" / f"{SHA256}.part"
    first = start(server, tmp_path)
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    second = start(server, tmp_path)
    # The second has asked the hub once it waits for the lock.
    wait_for(lambda: sum(a.method == "HEAD" for a in server.asked) == 2)
    server.faults.go_on.set()
    assert (said(first), said(second)) == ("fetched", "cached")
    assert server.starts(f"/blobs/{SHA256}") == [0]


def test_a_file_size_limit_is_a_full_disk_and_loses_nothing(server, tmp_path) -> None:
    answer = said(start(server, tmp_path, limit=200_000))
    assert answer.startswith("disk_full|")
    assert "the download continues" in answer
    assert models_in(tmp_path) == []
    assert (tmp_path / "partial" / f"{SHA256}.part").stat().st_size == 200_000
    assert said(start(server, tmp_path)) == "fetched"
    assert server.starts(f"/blobs/{SHA256}") == [0, 200_000]


def test_a_full_disk_is_named(server, tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # The hub announces less than it sends space for, or the fetch would be refused beforehand;
    # then something else takes the room.
    mount = f'mount -t tmpfs -o size=1m none {disk} && exec "$@"'
    private = ("unshare", "--mount", "sh", "-c", mount, "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*private, "true"], check=False).returncode
    ):
        pytest.skip("this machine allows no private mounts")
    server.faults.pause_after_bytes = 300_000
    process = start(server, disk, before=private)
    inside = Path(f"/proc/{process.pid}/root{disk}")
    part = inside / "partial" / f"{SHA256}.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= 250_000)
    with contextlib.suppress(OSError), (inside / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    server.faults.go_on.set()
    assert said(process).startswith("disk_full|")
