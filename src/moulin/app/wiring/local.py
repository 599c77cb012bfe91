"""Fills in the engine of this machine, and what is asked of it without a control plane."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.app.clock import SystemClock
from moulin.domain.ids import StepId
from moulin.domain.observation import ENDED_PHASES
from moulin.energy import cpu_power
from moulin.engines.local.cgroup import find_cgroup_base
from moulin.engines.local.engine import LocalEngine
from moulin.engines.local.launch import is_login_possible
from moulin.engines.local.nodes import divide_machine
from moulin.engines.task.containers import find_tools, missing_beside_podman
from moulin.ports.engine import Engine, ListsSteps
from moulin.sources.machine import read_machine
from moulin.sources.wellbeing import MachineHealth

STOP_GRACE_S: Final = 5


def local_engine(data_dir: Path, clock: SystemClock, nodes: int, prefix: str) -> LocalEngine:
    """Return the engine of this machine, divided into `nodes` nodes.

    Raises `InvalidSpec` for more nodes than CPUs, `SourceUnavailable` without a Linux /proc.
    """
    machine = read_machine()
    power = cpu_power(machine.cpu_model, len(machine.cpu_ids) * 1000)
    divided = divide_machine(
        nodes=nodes,
        cpu_ids=machine.cpu_ids,
        memory_bytes=machine.memory_bytes,
        boot_id=machine.boot_id,
        accelerators=len(machine.gpus),
        accelerator_class=machine.gpus[0].name if machine.gpus else "",
        idle_mw=power.idle_mw,
        peak_mw=power.peak_mw,
        power_source=power.source,
        node_prefix=prefix,
    )
    stated = [
        replace(
            node,
            power_quality=power.quality,
            power_uncertainty_ppm=power.uncertainty_ppm,
            has_login=is_login_possible(),
        )
        for node in divided
    ]
    return LocalEngine(
        data_dir,
        clock=clock,
        nodes=stated,
        cgroup=find_cgroup_base(),
        booted_at_ns=machine.booted_at_ns,
        read_health=MachineHealth(data_dir, clock),
    )


def stop_everything_local(data_dir: Path) -> int:
    """Stop every task the local engine still runs under a data directory; return how many.

    For `moulin down` when no control plane runs. Returns when each was asked to stop; a task whose
    shim was killed ends here, because observing it ends what is left of it.
    """
    engine: Engine = local_engine(data_dir, SystemClock(), 1, "node")
    steps: tuple[StepId, ...] = engine.steps() if isinstance(engine, ListsSteps) else ()
    running = [seen.step for seen in engine.observe(steps) if seen.phase not in ENDED_PHASES]
    for step in running:
        engine.stop(step, STOP_GRACE_S)
    return len(running)


def container_tools() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what runs images here, the preferred tool first, and what Podman still lacks."""
    path = os.environ.get("PATH", os.defpath)
    found = tuple(tool.title for tool in find_tools(path))
    return found, missing_beside_podman(path)


def memory_limit_method() -> str:
    """Return how tasks' memory would be limited here: `cgroup-v2` or `rss-watch`."""
    base = find_cgroup_base()
    return "cgroup-v2" if base is not None and base.limits_memory else "rss-watch"


def boot_id() -> str:
    """Return this machine's boot id; empty where the kernel has none."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""
