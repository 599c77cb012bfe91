"""A real Moulin for tests of the command line: started by `moulin up`, ended by `moulin down`."""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from moulin.cli.main import run

ANSWER_S = 60.0
# A command may load models; the time that its test has ends a wait in vain.
COMMAND_S = 300.0


@dataclass
class Shell:
    """Runs `moulin` in a folder of its own, with nothing of the caller's settings."""

    folder: Path
    # Commands then run in this process, which saves the start of an interpreter for each.
    is_inside: bool = False
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / ".moulin"

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MOULIN_")}
        return {**kept, "HOME": str(self.folder), "NO_COLOR": "1", "COLUMNS": "120"}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "moulin.cli.main", *words]

    def moulin(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        if self.is_inside:
            return self._inside(*words, text=text)
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment(),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S,
        )

    def _inside(self, *words: str, text: str) -> subprocess.CompletedProcess[str]:
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(os, "environ", self.environment())
            patch.setattr(sys, "stdin", io.StringIO(text))
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            status = run(words)
        out, err = (stream.buffer.getvalue().decode() for stream in streams)
        return subprocess.CompletedProcess(words, status, out, err)

    def json(self, *words: str) -> dict:
        index = words.index("--") if "--" in words else len(words)
        done = self.moulin(*words[:index], "--json", *words[index:])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self.command(*words),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_hear_interrupts,  # noqa: PLW1509 - tests begin programs from one thread
        )
        self.started.append(process)
        return process

    def up(self, *words: str) -> tuple[subprocess.Popen[bytes], dict]:
        """Start Moulin and return its process with what it announced."""
        ports = ("--control-port", "0", "--gateway-port", "0")
        process = self.begin("up", *ports, "--metering-interval", "1", *words, "--json")
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], ANSWER_S)
        line = process.stdout.readline() if ready else b""
        if not line.startswith(b"{"):
            process.kill()
            pytest.fail(f"up said {line!r}, {process.communicate()[1]!r}")
        return process, json.loads(line)

    def processes(self) -> list[int]:
        """Return every process that has this data directory among its words."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
                if str(self.data).encode() in words and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
        return found

    def until(self, condition) -> None:
        """Wait for a condition; fail after a long time."""
        deadline_s = time.monotonic() + ANSWER_S
        while not condition():
            assert time.monotonic() < deadline_s, "it never came"
            time.sleep(0.02)

    def close(self) -> None:
        if (self.data / "credentials.json").exists():
            self.moulin("down")
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.until(lambda: self.processes() == [])  # the last of them are still ending


@pytest.fixture
def shell(tmp_path) -> Iterator[Shell]:
    """A folder where nothing runs yet."""
    opened = Shell(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def mill(tmp_path_factory) -> Iterator[Shell]:
    """A running Moulin in France, shared by the tests of a module."""
    opened = Shell(tmp_path_factory.mktemp("mill"), is_inside=True)
    opened.up("--country", "FR")
    yield opened
    opened.close()


def _hear_interrupts() -> None:
    """Undo what a shell does to programs it starts in the background: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
