"""Writes what a shim is to do with a step; judges only words that no system could run."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineRefused
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.domain.workload import TaskTemplate
from moulin.engines.task.image import Contained
from moulin.engines.task.spool import StepFiles

SHIM: Final = str(Path(__file__).with_name("shim.py"))
LOGIN: Final = str(Path(__file__).with_name("login.py"))
_WITH_SETUP: Final = 'eval "$1" || exit; shift; exec "$@"'


def refuse_bad_words(step: StartStep) -> None:
    """Raise `EngineRefused` for a command or variables that no system could run."""
    if not step.task.command and step.lease is None:
        raise refusal(step, "it has no command", "give `run` or a command after --")
    texts = (*step.task.command, step.task.setup, *step.task.env, *step.task.env.values())
    if any("\0" in text for text in texts):
        raise refusal(step, "a command or variable holds a NUL byte", "remove it")
    if any(not name or "=" in name for name in step.task.env):
        raise refusal(step, "the name of a variable is empty or holds '='", "rename it")


def with_login(step: StartStep, python: str, program: str, host: str) -> StartStep:
    """Return a leased node's step with the program that lets its tenant in; any other as it is."""
    if step.lease is None:
        return step
    env = {
        "MOULIN_LEASE_KEYS": "\n".join(step.lease.ssh_keys),
        "MOULIN_LEASE_LIMIT_S": str(step.time_limit_s),
        "MOULIN_LEASE_WARN_S": str(step.lease.warn_s),
    }
    command = (python, "-I", "-S", "-E", program, host)
    return replace(step, task=TaskTemplate(command=command, env=env))


def specification(
    step: StartStep,
    files: StepFiles,
    *,
    env: dict[str, str],
    node: NodeCapacity,
    memory_method: str,
    cgroup: str,
    contained: Contained | None = None,
    beside: tuple[str, ...] = (),
) -> bytes:
    """Return what the shim reads: NUL-ended names and values, repeated names in order.

    `contained` is how a container tool is started for it, with all that `env` would be; `beside` is
    what prepares its folder and then becomes the rest.
    """
    argv = (*beside, *(contained.argv if contained else program_words(step)))
    env = dict(contained.env) if contained else env
    pairs = [
        *(("argv", word) for word in argv),
        *(("env", f"{name}={value}") for name, value in sorted(env.items())),
        ("cpus", ",".join(str(cpu) for cpu in node.cpu_ids)),
        ("workdir", step.task.workdir or files.shared),
        ("memory_limit_bytes", str(step.resources.memory_bytes)),
        ("memory_method", memory_method),
        ("cgroup", cgroup),
        ("stop_signal", str(signal.Signals[f"SIG{step.stop_signal}"].value)),
        ("grace_ns", str(step.stop_grace_s * 1_000_000_000)),
        ("boot_id", node.boot_id),
        ("endpoint", "1" if step.endpoint is not None else ""),
        ("container", contained.reach if contained else ""),
        ("lease", "1" if step.lease is not None else ""),
        ("secrets", "1" if step.secrets or step.secret_files else ""),
    ]
    words = "".join([f"{name}\0{value}\0" for name, value in pairs])
    return words.encode(errors="surrogateescape")


def program_words(step: StartStep) -> tuple[str, ...]:
    """Return the task's own argv, its `setup` before it in the same shell."""
    if not step.task.setup:
        return step.task.command
    return ("sh", "-c", _WITH_SETUP, "sh", step.task.setup, *step.task.command)


def refusal(step: StartStep, why: str, hint: str) -> EngineRefused:
    """Make the error for a step that can never start here."""
    return EngineRefused(f"start {step.step}: {why}", hint=hint, details={"step": step.step})
