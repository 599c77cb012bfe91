"""Start, find, stop and measure a whole Moulin as a user runs it: the command, its own processes."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_S = 0.01
READY_S_MAX = 90.0
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Running:
    """A Moulin that answered: what `up --json` said, and its supervisor."""

    data: Path
    facts: dict[str, Any]
    ready_s: float
    process: "subprocess.Popen[str]"

    def is_whole(self) -> bool:
        """Say whether control API and gateway both answer now."""
        urls = (self.control_url, self.gateway_url)
        return all(_is_well(int(url.rpartition(":")[2])) for url in urls)

    @property
    def control_url(self) -> str:
        """Address of the control API."""
        return str(self.facts["control_url"])

    @property
    def gateway_url(self) -> str:
        """Address of the gateway."""
        return str(self.facts["gateway_url"])


def moulin_command(*words: str) -> list[str]:
    """Return the command line of `moulin` in this environment."""
    installed = Path(sys.executable).with_name("moulin")
    own = [str(installed)] if installed.exists() else [sys.executable, "-m", "moulin.cli.main"]
    return [*own, *words]


@contextlib.contextmanager
def up(
    data: Path,
    *words: str,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Run `moulin up --json` on a data directory until the block ends; then everything is stopped.

    It counts as ready when the JSON is out and both the control API and the gateway answer.
    """
    control, gateway = free_port(), free_port()
    ports = ("--control-port", str(control), "--gateway-port", str(gateway))
    with contextlib.ExitStack() as stack:
        said = stack.enter_context((log or data.with_suffix(".log")).open("a"))
        begin_s = time.monotonic()
        process = subprocess.Popen(
            moulin_command("up", "--json", "--data", str(data), *ports, *words),
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            wait_until(lambda: _is_well(control) and _is_well(gateway), process)
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            yield Running(data, facts, time.monotonic() - begin_s, process)
        finally:
            with _uninterrupted():
                down(data, process)


def down(data: Path, process: "subprocess.Popen[str]") -> None:
    """Stop workloads and Moulin with `moulin down`; whatever fails, the supervisor ends."""
    command = moulin_command("down", "--data", str(data), "--wait", "60", "--json")
    try:
        for is_last in (False, False, True):
            # A control plane that was killed just now may still be on its way back.
            done = subprocess.run(
                command, timeout=180, check=is_last, stdout=subprocess.DEVNULL, text=True
            )
            if done.returncode == 0:
                break
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_until(
    condition: Callable[[], bool],
    process: "subprocess.Popen[str]",
    timeout_s: float = READY_S_MAX,
) -> None:
    """Return when the condition holds; raise when the process ends or the time is over."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"moulin up ended with status {process.returncode}")
        if time.monotonic() > until_s:
            raise RuntimeError(f"moulin up was not ready in {timeout_s:g} s")
        time.sleep(POLL_S)


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Return whether the condition came true in time; asked about five times a second."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.2)
    return True


def memory_kb(pid: int, fields: Sequence[str] = ("VmRSS:",)) -> dict[str, int]:
    """Return fields of /proc/PID/status in KiB; raises `OSError` when the process is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    parts = [line.split() for line in lines]
    return {words[0]: int(words[1]) for words in parts if words and words[0] in fields}


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MB (10^6 bytes)."""
    return round(memory_kb(pid)["VmRSS:"] * 1024 / 1e6, 1)


def free_port() -> int:
    """Return a port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_well(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C wait until everything is stopped."""
    if os.getpid() != _main_pid():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _main_pid() -> int:
    import threading

    is_main = threading.current_thread() is threading.main_thread()
    return os.getpid() if is_main else -1
