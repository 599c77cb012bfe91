"""Builds the environment of a task from values; nothing of the control plane's own leaks in.

The names of other systems (torchrun, SkyPilot, dstack, Slurm) are given too, so that scripts
written for them run unchanged.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from moulin.domain.plan import StartStep
from moulin.engines.task.spool import StepFiles

STEP_DIRECTORY_VARIABLE: Final = "MOULIN_STEP_DIR"
PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "LOGNAME", "SHELL")
_DEFAULTS: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8"}


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the few variables of `environment` that any program needs, with defaults.

    >>> clean_environment({"PATH": "/bin", "AWS_SECRET": "x"})["PATH"]
    '/bin'
    """
    kept = {name: environment[name] for name in PASSED_ON if environment.get(name)}
    return {**_DEFAULTS, **kept}


def task_environment(
    step: StartStep,
    files: StepFiles,
    *,
    base: Mapping[str, str],
    addresses: Sequence[str],
    port: int,
    devices: Sequence[int],
) -> dict[str, str]:
    """Return the whole environment of one task.

    `addresses` are the gang's, in rank order; `devices` the machine's device numbers.
    Later wins: base, rendezvous and aliases, the task's own, the control plane's, MOULIN_*.
    """
    return {
        **base,
        **_rendezvous(step, addresses[0], port),
        **_aliases(step, addresses),
        **_devices(devices),
        **step.task.env,
        **step.env,
        "MOULIN_STEP_ID": step.step,
        "MOULIN_ATTEMPT_ID": step.attempt,
        "MOULIN_WORKLOAD_ID": step.workload,
        "MOULIN_PROJECT_ID": step.project,
        "MOULIN_UNIT": str(step.unit),
        "MOULIN_GENERATION": str(step.generation),
        "MOULIN_ATTEMPT_DIR": files.shared,
        "MOULIN_READY_FILE": files.ready,
        "MOULIN_CHECKPOINT_DIR": files.checkpoint,
        STEP_DIRECTORY_VARIABLE: files.directory,
    }


def _rendezvous(step: StartStep, master: str, port: int) -> dict[str, str]:
    size, rank = str(len(step.nodes)), str(step.rank)
    return {
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
        "RANK": rank,
        "NODE_RANK": rank,
        "LOCAL_RANK": "0",
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": "1",
    }


def _aliases(step: StartStep, addresses: Sequence[str]) -> dict[str, str]:
    size, rank = str(len(step.nodes)), str(step.rank)
    devices = str(step.resources.accelerators)
    total = str(step.resources.accelerators * len(step.nodes))
    return {
        "SKYPILOT_NODE_RANK": rank,
        "SKYPILOT_NODE_IPS": "\n".join(addresses),
        "SKYPILOT_NUM_NODES": size,
        "SKYPILOT_NUM_GPUS_PER_NODE": devices,
        "SKYPILOT_TASK_ID": step.workload,
        "DSTACK_NODE_RANK": rank,
        "DSTACK_NODES_NUM": size,
        "DSTACK_MASTER_NODE_IP": addresses[0],
        "DSTACK_NODES_IPS": "\n".join(addresses),
        "DSTACK_GPUS_PER_NODE": devices,
        "DSTACK_GPUS_NUM": total,
        "SLURM_JOB_ID": step.workload,
        "SLURM_PROCID": rank,
        "SLURM_NODEID": rank,
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": size,
        "SLURM_NNODES": size,
        "SLURM_JOB_NUM_NODES": size,
        "SLURM_JOB_NODELIST": ",".join(step.nodes),
        "SLURM_RESTART_COUNT": str(max(step.generation - 1, 0)),
    }


def _devices(devices: Sequence[int]) -> dict[str, str]:
    # NVML counts in PCI order, CUDA fastest first unless told; an empty list hides every device.
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(str(device) for device in devices),
    }
