"""The runtimes there are, and the environments of those whose libraries must not meet Moulin's.

    DATA/runtimes/NAME/                 a virtual environment, built from the lock that ships
    DATA/runtimes/NAME/installed.json   which lock it was built from; written last

Runtimes are found by name, as `python -m` finds them: no code of Moulin depends on one, and adding
one is adding its module. An environment sees of Moulin's own packages `moulin` alone.
"""

import fcntl
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import moulin
from moulin.domain.errors import Refused, SourceError, SourceUnavailable, UnknownName
from moulin.domain.runtime import Runtime
from moulin.sources.disk import full_disk_named

PACKAGE: Final = "moulin.runtimes"
CONVERTER: Final = f"{PACKAGE}.gguf_checkpoint"
MARK: Final = "installed.json"
_LINE_CHARACTERS: Final = 100
_PACKAGE_DIRECTORY: Final = Path(moulin.__file__).parent
_INSTALL: Final = (
    "install", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-input",
    "--progress-bar", "off", "--disable-pip-version-check",
)  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeState:
    """A runtime and whether it can serve here; `place` is its environment, empty for Moulin's."""

    runtime: Runtime
    is_installed: bool
    place: str
    problem: str = ""


@cache
def known_runtimes() -> Mapping[str, Runtime]:
    """Return every runtime of this installation by name; modules without `RUNTIME` are helpers."""
    found = {}
    for module in pkgutil.iter_modules([str(_PACKAGE_DIRECTORY / "runtimes")]):
        described = getattr(importlib.import_module(f"{PACKAGE}.{module.name}"), "RUNTIME", None)
        if isinstance(described, Runtime):
            found[described.name] = described
    return found


class RuntimeBook:
    """The runtimes as one data directory has them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def states(self) -> Sequence[RuntimeState]:
        """Return every runtime with its state, by name."""
        return [self.state(name) for name in sorted(known_runtimes())]

    def state(self, name: str) -> RuntimeState:
        """Return whether a runtime can serve here.

        Raises `UnknownName`, its hint naming those there are.
        """
        runtime = _find(name)
        if not runtime.lock:
            missing = [module for module in runtime.modules if find_spec(module) is None]
            hint = f"pip install 'moulin[{runtime.extra}]'" if missing else ""
            return RuntimeState(runtime=runtime, is_installed=not missing, place="", problem=hint)
        place = self._directory / name
        is_installed = _mark_of(place) == _mark_wanted(runtime)
        return RuntimeState(
            runtime=runtime,
            is_installed=is_installed,
            place=str(place),
            problem="" if is_installed else f"moulin runtime install {name}",
        )

    def command(self, name: str) -> tuple[str, ...]:
        """Return the argv that starts a runtime, without its arguments.

        Raises `Refused`, with the command that installs it as hint, and `UnknownName`.
        """
        state = self.state(name)
        if not state.is_installed:
            raise Refused(
                f"start the runtime {name} ({state.runtime.title}): it is not installed",
                hint=state.problem,
                details={"runtime": name},
            )
        python = sys.executable
        if state.place:
            _link_moulin(Path(state.place))
            python = str(_python(Path(state.place)))
        return (python, "-m", f"{PACKAGE}.{name}")

    def convert(self, name: str, file: Path, directory: Path) -> None:
        """Turn a GGUF file into a checkpoint with a runtime's libraries.

        Raises `Refused` when the runtime is not installed, `SourceUnavailable` for a file that is
        not there, and `SourceError` when it cannot be converted or the folder exists.
        """
        python = self.command(name)[0]
        if not file.is_file():
            raise SourceUnavailable(f"convert {file}: there is no such file", hint="check the path")
        done = subprocess.run(
            [python, "-m", CONVERTER, str(file), str(directory)],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            words = done.stderr.strip().rpartition("error: ")[2]
            raise SourceError(words or f"convert {file}: it ended with {done.returncode}")

    def install(self, name: str, say: Say) -> RuntimeState:
        """Build a runtime's environment from its lock, unless it is there, and try its imports.

        What an interrupted install left is thrown away by the next.

        Raises `UnknownName`, `Refused` for a runtime that shares Moulin's environment,
        `SourceUnavailable` when the packages cannot be had, `SourceError` when they do not work
        here, and `DiskFull`.
        """
        runtime = _find(name)
        if not runtime.lock:
            raise Refused(
                f"install the runtime {name}: it has no environment of its own",
                hint=f"pip install 'moulin[{runtime.extra}]'",
            )
        place = self._directory / name
        self._directory.mkdir(parents=True, exist_ok=True)
        with _alone(self._directory / f"{name}.lock"):
            if _mark_of(place) != _mark_wanted(runtime):
                _build(runtime, place, say)
        return self.state(name)


def _find(name: str) -> Runtime:
    runtime = known_runtimes().get(name)
    if runtime is None:
        names = ", ".join(sorted(known_runtimes()))
        raise UnknownName(f"there is no runtime {name!r}", hint=f"known: {names}")
    return runtime


def _build(runtime: Runtime, place: Path, say: Say) -> None:
    say(f"building {place}, about {runtime.size_bytes // 10**6} MB")
    shutil.rmtree(place, ignore_errors=True)
    with full_disk_named(place):
        venv.create(place, with_pip=True, symlinks=True)
    python = str(_python(place))
    _run([python, "-m", "pip", *_INSTALL, "-r", str(_lock_of(runtime))], say)
    _link_moulin(place)
    tried = subprocess.run(
        [python, "-c", f"import {', '.join(runtime.modules)}"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if tried.returncode != 0:
        words = tried.stderr.strip().rpartition("\n")[2]
        raise SourceError(f"try the runtime {runtime.name}: {words}", hint="its log is above")
    with full_disk_named(place):
        (place / MARK).write_text(json.dumps(_mark_wanted(runtime)))


def _run(command: Sequence[str], say: Say) -> None:
    """Run pip and hand on its lines; raise `SourceUnavailable` with its reason when it fails."""
    reason = "pip ended without a reason"
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ERROR:"):
                reason = line.removeprefix("ERROR:").strip()
            if line.startswith(("Collecting", "Downloading", "Installing", "ERROR")):
                say(line.strip()[:_LINE_CHARACTERS])
    if process.returncode != 0:
        raise SourceUnavailable(
            f"install the runtime's packages: {reason}",
            hint="check the network and pip's configuration (`pip config list`)",
        )


def _link_moulin(place: Path) -> None:
    """Let an environment see this Moulin, and of its neighbours nothing."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    link = place / "lib" / version / "site-packages" / "moulin"
    if link.is_symlink() and link.readlink() == _PACKAGE_DIRECTORY:
        return
    draft = link.with_name(f"moulin.{os.getpid()}")
    draft.symlink_to(_PACKAGE_DIRECTORY)
    draft.replace(link)


def _python(place: Path) -> Path:
    return place / "bin" / "python"


def _lock_of(runtime: Runtime) -> Path:
    return _PACKAGE_DIRECTORY / "runtimes" / "locks" / runtime.lock


def _mark_wanted(runtime: Runtime) -> dict[str, str]:
    digest = hashlib.sha256(_lock_of(runtime).read_bytes()).hexdigest()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"lock_sha256": digest, "python": python}


def _mark_of(place: Path) -> object:
    try:
        return json.loads((place / MARK).read_bytes())
    except (OSError, ValueError):
        return None


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold the right to build one environment; another process that wants it waits."""
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
