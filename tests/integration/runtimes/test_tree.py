"""Servers as trees of processes: they die as one, and what they share goes with them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from moulin.runtimes.tree import TIED, Words, end, start, unname_shared_memory

# A runtime that starts a server, which starts a worker that shares memory with it.
WORKER = """
import sys, time
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(name=sys.argv[1])
print("ready", flush=True)
time.sleep(600)
"""
SERVER = f"""
import multiprocessing, subprocess, sys, time
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(create=True, size=1 << 20)
lock = multiprocessing.get_context("spawn").Lock()
worker = subprocess.Popen([sys.executable, "-c", {WORKER!r}, memory.name], stdout=subprocess.PIPE)
worker.stdout.readline()
print(memory.name, "sem." + lock._semlock.name.strip("/"), worker.pid, flush=True)
worker.wait()
"""
RUNTIME = f"""
import os, subprocess, sys
from moulin.runtimes.tree import Words, start, unname_shared_memory
server = start([sys.executable, "-c", {SERVER!r}], os.environ)
line = server.stdout.readline().decode()
unname_shared_memory(server.pid)
print(server.pid, line, flush=True)
server.wait()
"""


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def until(condition) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.01)


@pytest.fixture
def hooks(tmp_path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(TIED)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    return {**os.environ, "PYTHONPATH": path}


@pytest.mark.parametrize("victim", ["runtime", "server", "worker"])
def test_whoever_is_killed_nothing_is_left(hooks, victim) -> None:
    runtime = subprocess.Popen([sys.executable, "-c", RUNTIME], env=hooks, stdout=subprocess.PIPE)
    assert runtime.stdout is not None
    server, memory, lock, worker = runtime.stdout.readline().decode().split()
    pids = {"runtime": runtime.pid, "server": int(server), "worker": int(worker)}
    assert not [name for name in (memory, lock) if Path("/dev/shm", name).exists()]
    os.kill(pids[victim], signal.SIGKILL)
    runtime.wait()
    runtime.stdout.close()
    until(lambda: all(is_gone(pid) for pid in pids.values()))


def test_memory_of_others_keeps_its_name() -> None:
    mine = shared_memory.SharedMemory(create=True, size=4096)
    try:
        with subprocess.Popen(["sleep", "600"]) as other:
            unname_shared_memory(other.pid)
            other.kill()
        assert Path("/dev/shm", mine.name).exists()
    finally:
        mine.close()
        mine.unlink()


def test_words_are_kept_until_they_are_to_be_forgotten() -> None:
    failed = start([sys.executable, "-c", "print('x' * 10**6); exit('it broke')"], os.environ)
    words = Words(failed)
    failed.wait()
    assert words.last().strip().endswith("it broke")
    assert len(words.last()) < 20_000
    serving = start([sys.executable, "-c", "print('CANARY')"], os.environ)
    words = Words(serving)
    words.forget()
    serving.wait()
    assert words.last() == ""


def test_a_server_that_does_not_want_to_end_is_made_to() -> None:
    script = textwrap.dedent("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(600)
    """)
    server = start([sys.executable, "-c", script], os.environ)
    assert server.stdout is not None
    server.stdout.readline()
    end(server, 0.1)
    assert server.returncode == -signal.SIGKILL
    server.stdout.close()
