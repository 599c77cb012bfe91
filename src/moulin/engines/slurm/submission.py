"""Turns attempts into a batch script and the job to submit; judges what can never run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shlex import quote, split
from typing import Final

from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.engines.slurm.accounts import project_account
from moulin.engines.slurm.arrays import ArrayJob
from moulin.engines.slurm.client import JobRequest
from moulin.engines.slurm.places import machine_of
from moulin.engines.slurm.settings import ANY_PYTHON, SlurmSettings
from moulin.engines.task.bundle_shelf import SharedData
from moulin.engines.task.containers import contain, contents
from moulin.engines.task.data import BESIDE, MOVER, Beside
from moulin.engines.task.image import ContainerTool
from moulin.engines.task.specification import SHIM, refusal, refuse_bad_words, specification
from moulin.engines.task.spool import (
    CHECKPOINTS,
    StepFiles,
    is_there,
    make_directory,
    read_exact,
    write_once,
)
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
_TAKE: Final = (
    'printf %s "$job" > "owner.$job" || exit 1\n'
    'ln "owner.$job" owner 2>/dev/null\n'
    'read -r owner < owner; [ "$owner" = "$job" ] || exit 0\n'
)
# What PATH has first may be a wrapper that takes half a second; the system's own is there at once.
_CHOOSE: Final = (
    "MOULIN_PYTHON=/usr/bin/python3\n"
    '[ -x "$MOULIN_PYTHON" ] || MOULIN_PYTHON=python3\n'
    "export MOULIN_PYTHON\n"
)
# Slurm sorts nodes by name; this keeps the ranks, and so SLURM_PROCID, in the order of the plan.
_IN_ORDER: Final = 'export SLURM_HOSTFILE="$PWD/hosts"\n'
# From 23.11 on it says SLURM_CPUS_PER_TASK once more, and an `srun` where the two differ ends at once.
_TWICE_SAID: Final = "SLURM_TRES_PER_TASK"
# An `srun` in the task itself must not be bound to the one that started the gang.
_RANK: Final = (
    f"unset SLURM_HOSTFILE SLURM_DISTRIBUTION SLURM_ARBITRARY_NODELIST {_TWICE_SAID};"
    ' exec "$@" "$SLURM_PROCID"'
)
# The doubled fork leaves the reader to no process of the task; the shell's own id is then the shim's.
_BESIDE: Final = (
    "( {{ for tenth in 4 8 12 16 20; do sleep 0.4; kill -0 $$ 2>/dev/null || exit; done;"
    ' [ "$CUDA_VISIBLE_DEVICES$SLURM_GPUS_ON_NODE" ] || for file in HEALTH/"$SLURMD_NODENAME"/*; do'
    ' [ -e "$file" ] && exit; done; exec {python} -I -S -E {reader} HEALTH "$PWD/{rank}" $$; }}'
    " </dev/null >/dev/null 2>&1 & ); "
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
    refuse_bad_words(step)


def task_specification(
    step: StartStep,
    files: StepFiles,
    node: NodeCapacity,
    *,
    addresses: Sequence[str],
    port: int,
    is_delegated: bool,
    beside: tuple[str, ...] = (),
    tool: ContainerTool | None = None,
) -> bytes:
    """Return what the shim reads on the node.

    Later wins: what is written here for any system, what the node and Slurm say, the task's own
    variables and the control plane's. `tool` is what the nodes have for the task's image.
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
    strong, weak = {}, {}
    for name, value in whole.items():
        if name in own or name.startswith("MOULIN_"):
            strong[name] = value
        elif name not in later:
            weak[name] = value
    passed = (*PASSED_ON, *_SLURMS_OWN, *(_CHOSEN_LATER if is_delegated else ()))
    more = [
        *(("default_env", f"{name}={value}") for name, value in sorted(weak.items())),
        *(("pass", name) for name in passed),
    ]
    spec = specification(
        step,
        files,
        env=strong,
        node=node,
        memory_method="rss-watch",
        cgroup="",
        beside=beside,
        contained=contain(tool, contents(step, files, strong, {}), strong, {}) if tool else None,
    )
    words = "".join([f"{name}\0{value}\0" for name, value in more])
    return spec + words.encode(errors="surrogateescape")


def _unsaid(step: StartStep) -> tuple[str, ...]:
    """Return what may not even be a default: the devices that Slurm will choose by itself."""
    return ("CUDA_VISIBLE_DEVICES",) if step.resources.accelerators else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a job becomes its tasks: `size` of them with `cpus` each, by the shim at `program`.

    Beside each a `reader` looks after its node and writes under `health`; without one nobody does.
    """

    size: int
    cpus: int
    program: str
    python: str
    is_delegated: bool
    reader: str = ""
    health: str = ""

    @property
    def interpreter(self) -> str:
        """What a batch script calls Python: the operator's word, else what it chose."""
        return '"$MOULIN_PYTHON"' if self.python == ANY_PYTHON else self.python

    def last_words(self) -> str:
        """Return the end of a batch script that has taken its attempt and is in its directory."""
        shim = f"{self.interpreter} -I -S -E {quote(self.program)}"
        before = _CHOOSE if self.python == ANY_PYTHON else ""
        if self.size == 1:
            before += 'export MASTER_ADDR="$(hostname)"\n' if self.is_delegated else ""
            return f"{before}unset {_TWICE_SAID}\n{self._beside('0')}exec {shim} 0"
        # Slurm 23.11 and later take no number of nodes beside an order of their own.
        order = f" --nodes={self.size}" if self.is_delegated else " --distribution=arbitrary"
        rank = f"{self._beside('$SLURM_PROCID')}{_FIRST_NODE if self.is_delegated else ''}{_RANK}"
        return (
            f"{before}{'' if self.is_delegated else _IN_ORDER}"
            f"exec srun --ntasks={self.size} --cpus-per-task={self.cpus}{order}"
            " --kill-on-bad-exit=0 --wait=0 --input=none --export=ALL"
            f" sh -c {quote(rank)} sh {shim}"
        )

    def _beside(self, rank: str) -> str:
        """Return what starts the reader of a task, outside of what its shim takes for the task.

        What is over at once is not looked after, and of tasks without devices one on each node is.
        """
        if not self.reader:
            return ""
        words = _BESIDE.format(python=self.interpreter, reader=quote(self.reader), rank=rank)
        return words.replace("HEALTH", quote(self.health))


def batch_script(directory: str, launch: Launch) -> bytes:
    """Return the job's script: it takes the attempt once, then becomes its only task or its gang."""
    return (
        "#!/bin/sh\n"
        "# Started by Moulin, which finds it by its name; the first job to link `owner` runs it.\n"
        f"cd {quote(directory)} || exit 1\n"
        f"job=$SLURM_JOB_ID\n{_TAKE}{launch.last_words()}\n"
    ).encode()


def array_script(array: ArrayJob, launch: Launch) -> bytes:
    """Return the script of an array's jobs: each does as an attempt's own would, for its line."""
    spool = str(Path(array.directory).parent.parent)
    specs = quote(array.path("specs"))
    return (
        "#!/bin/sh\n"
        "# Started by Moulin, which finds it by its name; each job takes the attempt on its line of\n"
        "# `members`, and the first job to link an attempt's `owner` runs it.\n"
        f'set -- $(sed -n "$((SLURM_ARRAY_TASK_ID + 1)){{p;q;}}" {quote(array.path("members"))})\n'
        f'[ -n "$1" ] && cd {quote(spool)} || exit 1\n'
        f'(umask 077; mkdir -p "$1/shared" {CHECKPOINTS}/"${{1%.g*}}") && cd "$1" || exit 1\n'
        f'job="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"\n{_TAKE}'
        f'[ -e 0/spec ] || (umask 077; mkdir -p 0 && tail -c "+$(($2 + 1))" {specs} |'
        ' head -c "$3" > "0/spec.$job" && [ "$(wc -c < "0/spec.$job")" -eq "$3" ] &&'
        ' mv "0/spec.$job" 0/spec) || exit 1\n'
        f"{launch.last_words()}\n"
    ).encode()


def job_request(
    step: StartStep,
    settings: SlurmSettings,
    *,
    gres_type: str = "",
    time_limit_s: int = 0,
    avoided: Sequence[str] = (),
) -> JobRequest:
    """Return the job of a step's gang, without its name, its place and its script.

    Where Slurm chooses, it is to choose none of the `avoided` machines.
    """
    resources = step.resources
    hosts = hosts_of(step.nodes, settings)
    return JobRequest(
        name="",
        comment="",
        directory="",
        output="",
        script=b"",
        nodes=len(step.nodes),
        cpus=whole_cpus(resources.cpu_milli),
        memory_mib=max(1, -(-resources.memory_bytes // _MIB)),
        gres=_gres(resources.accelerators, gres_type),
        hosts=hosts,
        excluded=() if hosts else tuple(avoided),
        time_limit_minutes=-(-time_limit_s // 60),
        partition=settings.partition,
        account=project_account(step.project) if settings.is_mirrored else settings.account,
        qos=settings.qos,
        reservation=settings.reservation,
        constraint=settings.constraint,
        is_exclusive=step.lease is not None,
    )


def hosts_of(nodes: Sequence[str], settings: SlurmSettings) -> tuple[str, ...]:
    """Return Slurm's names of nodes, none where it chooses."""
    if not settings.is_delegated:
        return tuple(node.removeprefix(settings.prefix) for node in nodes)
    named = tuple(machine_of(node, settings.prefix) for node in nodes)
    return named if all(named) else ()


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


def shared_data(spool: Path, python: str) -> SharedData:
    """Return what prepares tasks' folders, its programs where the nodes see them; `OSError`."""
    words = split(python)
    return SharedData(
        spool,
        Beside(
            python=words,
            program=install_program(spool, BESIDE),
            mover_python=words,
            mover=install_program(spool, MOVER),
        ),
    )


def install_program(spool: Path, source: str = SHIM) -> str:
    """Put a program where the nodes see it, once for each of its versions; return its path."""
    data = read_exact(source) or b""
    folder = str(spool / PROGRAM_FOLDER)
    path = f"{folder}/{Path(source).stem}-{sha256(data).hexdigest()[:16]}.py"
    if not is_there(path):
        make_directory(folder)
        write_once(path, data)
    return path
