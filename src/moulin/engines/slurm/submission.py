"""Turns an attempt into a batch script and the words of its `sbatch`; judges what can never run."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Final

from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.task.specification import SHIM, refusal, refuse_bad_words, specification
from moulin.engines.task.spool import StepFiles, is_there, make_directory, read_exact, write_once
from moulin.engines.task.task_env import PASSED_ON, clean_environment, task_environment

PROGRAM_FOLDER: Final = ".program"
# What Slurm sets for a task is truer than what was written before it chose.
_SLURMS_OWN: Final = (
    *("SLURM_*", "SLURMD_*", "PMI*", "PMIX_*", "OMPI_*", "CUDA_VISIBLE_DEVICES"),
    *("ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL"),
)
# Known only once Slurm has chosen the nodes of a delegated pool.
_CHOSEN_LATER: Final = (
    *("MASTER_ADDR", "SKYPILOT_NODE_IPS", "DSTACK_NODES_IPS", "DSTACK_MASTER_NODE_IP"),
)
_MIB: Final = 1 << 20
# Slurm sorts nodes by name; this keeps the ranks, and so SLURM_PROCID, in the order of the plan.
_IN_ORDER: Final = 'export SLURM_HOSTFILE="$PWD/hosts"\n'
# An `srun` in the task itself must not be bound to the one that started the gang.
_RANK: Final = (
    'unset SLURM_HOSTFILE SLURM_DISTRIBUTION SLURM_ARBITRARY_NODELIST; exec "$@" "$SLURM_PROCID"'
)
_FIRST_NODE: Final = (
    'export MASTER_ADDR="${SLURM_LAUNCH_NODE_IPADDR:-127.0.0.1}"'
    ' DSTACK_MASTER_NODE_IP="${SLURM_LAUNCH_NODE_IPADDR:-127.0.0.1}"; '
)


def refuse_what_slurm_cannot_run(step: StartStep, nodes: Mapping[str, NodeCapacity]) -> None:
    """Raise `EngineRefused` when no number of attempts would start this step on these nodes."""
    unknown = next((node for node in step.nodes if node not in nodes), None)
    if unknown is not None or step.rank >= len(step.nodes):
        raise refusal(step, f"node {unknown} is not one of this engine", "the plan is out of date")
    if len(set(step.nodes)) != len(step.nodes):
        raise refusal(step, "two tasks of the gang are on one node", "the plan is out of date")
    node, asked = nodes[step.nodes[step.rank]], step.resources
    if (
        whole_cpus(asked.cpu_milli) * 1000 > node.cpu_milli
        or asked.memory_bytes > node.memory_bytes
        or asked.accelerators > node.accelerators
    ):
        raise refusal(step, f"it asks for more than {node.node} has", "ask for less on each node")
    if step.task.image:
        raise refusal(
            step,
            f"image {step.task.image!r} needs a container tool, which this engine does not drive",
            "remove `image`, or use a pool whose engine runs containers",
        )
    refuse_bad_words(step)


def task_specification(
    step: StartStep,
    files: StepFiles,
    node: NodeCapacity,
    *,
    addresses: Sequence[str],
    port: int,
    is_delegated: bool,
) -> bytes:
    """Return what the shim reads on the node.

    Later wins: what is written here for any system, what the node and Slurm say, the task's own
    variables and the control plane's.
    """
    whole = task_environment(
        step,
        files,
        base=clean_environment({}),
        addresses=addresses,
        port=port,
        devices=step.devices,
    )
    own = {*step.task.env, *(name for name in step.env if name not in _CHOSEN_LATER)}
    if not is_delegated:
        own |= set(step.env)
    later = () if not is_delegated else _unsaid(step)
    is_strong = {name: name in own or name.startswith("MOULIN_") for name in whole}
    strong = {name: value for name, value in whole.items() if is_strong[name]}
    weak = {
        name: value for name, value in whole.items() if not is_strong[name] and name not in later
    }
    passed = (*PASSED_ON, *_SLURMS_OWN, *(_CHOSEN_LATER if is_delegated else ()))
    more = [
        *(("default_env", f"{name}={value}") for name, value in sorted(weak.items())),
        *(("pass", name) for name in passed),
    ]
    spec = specification(step, files, env=strong, node=node, memory_method="rss-watch", cgroup="")
    return spec + b"".join(
        name.encode() + b"\0" + value.encode(errors="surrogateescape") + b"\0"
        for name, value in more
    )


def _unsaid(step: StartStep) -> tuple[str, ...]:
    """Return what may not even be a default: the devices that Slurm will choose by itself."""
    return ("CUDA_VISIBLE_DEVICES",) if step.resources.accelerators else ()


def batch_script(
    size: int, directory: str, *, program: str, python: str, cpus: int, is_delegated: bool
) -> bytes:
    """Return the job's script: it takes the attempt once, then becomes its only task or its gang."""
    shim = f"{python} -I -S -E {quote(program)}"
    if size == 1:
        before = 'export MASTER_ADDR="$(hostname)"\n' if is_delegated else ""
        last = f"{before}exec {shim} 0"
    else:
        order = "" if is_delegated else " --distribution=arbitrary"
        rank = f"{_FIRST_NODE}{_RANK}" if is_delegated else _RANK
        last = (
            f"{'' if is_delegated else _IN_ORDER}"
            f"exec srun --nodes={size} --ntasks={size} --cpus-per-task={cpus}{order}"
            " --kill-on-bad-exit=0 --wait=0 --input=none --export=ALL"
            f" sh -c {quote(rank)} sh {shim}"
        )
    return (
        "#!/bin/sh\n"
        "# Started by Moulin, which finds it by its name; the first job to link `owner` runs it.\n"
        f"cd {quote(directory)} || exit 1\n"
        'printf %s "$SLURM_JOB_ID" > "owner.$SLURM_JOB_ID" || exit 1\n'
        'ln "owner.$SLURM_JOB_ID" owner 2>/dev/null\n'
        '[ "$(cat owner)" = "$SLURM_JOB_ID" ] || exit 0\n'
        f"{last}\n"
    ).encode()


def sbatch_command(
    step: StartStep,
    settings: SlurmSettings,
    *,
    comment: str,
    directory: str,
    hosts: Sequence[str],
    gres_type: str,
    time_limit_s: int,
) -> tuple[str, ...]:
    """Return the words of one `sbatch`; `hosts` are Slurm's names of the nodes, none: any."""
    size, resources = len(step.nodes), step.resources
    options = {
        "job-name": step.attempt,
        "comment": comment,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "reservation": settings.reservation,
        "constraint": settings.constraint,
        "chdir": directory,
        "output": f"{directory}/batch",
        "nodes": str(size),
        "ntasks": str(size),
        "ntasks-per-node": "1",
        "cpus-per-task": str(whole_cpus(resources.cpu_milli)),
        "mem": f"{max(1, -(-resources.memory_bytes // _MIB))}M",
        "nodelist": ",".join(hosts),
        "gres": _gres(resources.accelerators, gres_type),
        "time": str(-(-time_limit_s // 60)) if time_limit_s else "",
    }
    given = (f"--{name}={value}" for name, value in options.items() if value)
    return ("sbatch", "--parsable", "--no-requeue", "--open-mode=append", *given)


def whole_cpus(cpu_milli: int) -> int:
    """Return how many CPUs a task takes on Slurm, which does not divide them.

    >>> whole_cpus(500), whole_cpus(2500)
    (1, 3)
    """
    return max(1, -(-cpu_milli // 1000))


def _gres(count: int, gres_type: str) -> str:
    if not count:
        return ""
    return f"gpu:{gres_type}:{count}" if gres_type else f"gpu:{count}"


def install_program(spool: Path) -> str:
    """Put the shim where the nodes see it, once for each of its versions; return its path."""
    data = read_exact(SHIM) or b""
    folder = str(spool / PROGRAM_FOLDER)
    path = f"{folder}/shim-{sha256(data).hexdigest()[:16]}.py"
    if not is_there(path):
        make_directory(folder)
        write_once(path, data)
    return path
