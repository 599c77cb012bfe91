"""What a batch script's `#SBATCH` lines ask for, in the words of a job file.

It decides what Moulin can do as Slurm would, what it does in its own way and says so, and what it
refuses because leaving it out would give another result. It opens no file and asks no cluster: a
partition is a zone of the same name, which `moulin cluster import` writes.
"""

import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from signal import Signals
from typing import Final

from moulin.domain.errors import InvalidSpec
from moulin.domain.jobfile import parse_job
from moulin.domain.slurmwords import parse_slurm_memory_bytes, parse_slurm_time_s
from moulin.domain.workload import STOP_SIGNALS, WorkloadSpec

MARK: Final = "#SBATCH"
DEFAULT_SHELL: Final = ("/bin/sh",)
# As in Slurm the script runs once, on the first node; the others are there for its `srun`.
_FIRST_NODE_ONLY: Final = (
    'done="$MOULIN_ATTEMPT_DIR/script.done"; if [ "$NODE_RANK" != 0 ]; then'
    ' until [ -e "$done" ]; do sleep 1; done; exit 0; fi; "$@"; status=$?; : > "$done"; exit $status'
)
_SHORT: Final[Mapping[str, str]] = {
    "-J": "job-name",
    "-t": "time",
    "-N": "nodes",
    "-n": "ntasks",
    "-c": "cpus-per-task",
    "-p": "partition",
    "-a": "array",
    "-d": "dependency",
    "-o": "output",
    "-e": "error",
    "-D": "chdir",
    "-G": "gpus",
    "-A": "account",
    "-q": "qos",
    "-C": "constraint",
    "-w": "nodelist",
    "-x": "exclude",
    "-m": "distribution",
    "-L": "licenses",
    "-H": "hold",
    "-i": "input",
    "-b": "begin",
    "-M": "clusters",
    "-Q": "quiet",
    "-W": "wait",
    "-v": "verbose",
    "-s": "oversubscribe",
    "-F": "nodefile",
    "-B": "extra-node-info",
    "-k": "no-kill",
}
_FLAGS: Final = frozenset(
    {
        *(
            "hold",
            "requeue",
            "no-requeue",
            "exclusive",
            "overcommit",
            "oversubscribe",
            "contiguous",
        ),
        *("quiet", "verbose", "wait", "no-kill", "spread-job", "get-user-env", "parsable"),
        *("test-only", "ignore-pbs", "kill-on-invalid-dep", "reboot", "use-min-nodes"),
    }
)
# What Moulin answers in its own way: said, and not in the way of the result.
_OWN_WAY: Final[Mapping[str, str]] = {
    "output": "`moulin logs` shows what it prints",
    "error": "`moulin logs` shows what it prints",
    "open-mode": "`moulin logs` shows what it prints",
    "account": "the project of your key pays",
    "qos": "the project of your key has its own limits",
    "mail-type": "a project's webhook is told",
    "mail-user": "a project's webhook is told",
    "nice": "`--priority` of `moulin run` orders your jobs",
    "priority": "`--priority` of `moulin run` orders your jobs",
    "requeue": "`--retry` of `moulin run` says how often it is tried",
    "no-requeue": "`--retry` of `moulin run` says how often it is tried",
    "comment": "`--label` of `moulin run` keeps a note",
    "nodelist": "nodes are chosen by their room and health",
    "exclude": "nodes are chosen by their room and health",
}
_REFUSED: Final[Mapping[str, str]] = {
    "begin": "start it when it is time, or `--after` another job",
    "nodefile": "name zones instead",
    "exclusive": "ask for all CPUs of a node with --cpus-per-task",
    "wrap": "write the command into the script",
    "constraint": "name the zone of a pool with that `constraint` as --partition",
    "reservation": "name the zone of a pool with that `reservation` as --partition",
    "tres-per-task": "write --cpus-per-task and --gpus-per-task",
    "cpus-per-gpu": "write --cpus-per-task",
    "mem-per-gpu": "write --mem",
    "ntasks-per-gpu": "write --ntasks-per-node",
    "gpus-per-socket": "write --gpus-per-node",
    "licenses": "submit it with sbatch: only Slurm counts licences",
}
_NAME: Final = re.compile(r"[^A-Za-z0-9._-]+")
# A type may begin with a digit, as 2080ti and 1g.5gb do; digits with nothing after them are a count.
_GRES: Final = re.compile(r"(?:gres[:/])?gpu(?::(?![0-9]+$)(\w[\w.-]*))?(?::([0-9]{1,4}))?")
_GPUS: Final = re.compile(r"(?:(\w[\w.-]*):)?([0-9]{1,5})")
_SIGNAL: Final = re.compile(r"(?:[RB]{1,2}:)?([A-Za-z0-9]+)(?:@([0-9]{1,5}))?")
_SIGNAL_BEFORE_S: Final = 60
_DEPENDENCY: Final = re.compile(r"(afterok|afterany):([A-Za-z0-9_.:-]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchScript:
    """A script with what it asks for; `notes` say what is done in another way, or not at all."""

    spec: WorkloadSpec
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Asked:
    """The directives of one script, the last of each kind, and what is to be said of them."""

    origin: str
    values: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def refuse(self, option: str, problem: str, hint: str) -> InvalidSpec:
        return InvalidSpec(
            f"read {self.origin}: #SBATCH --{option}: {problem}",
            hint=hint,
            details={"file": self.origin, "path": option},
        )

    def read(self, option: str, parse: Callable[[str], int], default: int) -> int:
        written = self.values.get(option)
        if written is None:
            return default
        try:
            return parse(written)
        except (InvalidSpec, ValueError) as cause:
            words = cause.message if isinstance(cause, InvalidSpec) else f"cannot read {written!r}"
            hint = cause.hint if isinstance(cause, InvalidSpec) else "write a whole number"
            raise self.refuse(option, words, hint) from cause


def parse_sbatch(
    text: str,
    *,
    origin: str,
    workdir: str,
    arguments: Sequence[str] = (),
    classes: Collection[str] = (),
) -> BatchScript:
    """Return what a batch script asks for.

    `workdir` is where it runs unless it says otherwise; `classes` are known accelerator classes,
    whose spelling wins over that of a gres. Raises `InvalidSpec` naming the directive that cannot
    be done.
    """
    asked = _Asked(origin)
    for option, value in _directives(text):
        _take(asked, option, value)
    nodes, tasks_per_node = _tasks(asked)
    cpus = asked.read("cpus-per-task", _count, 1)
    body: dict[str, object] = {
        "name": _NAME.sub("-", asked.values.get("job-name", origin)).strip("-.")[:63] or "job",
        "num_nodes": nodes,
        "command": ["true"],
        "workdir": asked.values.get("chdir", workdir),
        "resources": {
            "cpus": cpus * tasks_per_node,
            **_memory(asked, cpus * tasks_per_node),
            **_accelerators(asked, nodes, tasks_per_node, classes),
        },
        "envs": _environment(asked, nodes, tasks_per_node, cpus),
        **_rest(asked),
    }
    spec = parse_job(body, origin=origin)
    command = (*_interpreter(text), "-c", text, origin, *arguments)
    if nodes > 1:
        command = ("sh", "-c", _FIRST_NODE_ONLY, "sh", *command)
    task = replace(spec.task, command=command) if spec.task is not None else None
    return BatchScript(spec=replace(spec, task=task), notes=tuple(dict.fromkeys(asked.notes)))


def _directives(text: str) -> list[tuple[str, str]]:
    """Return options and values of the `#SBATCH` lines before the first command."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            break
        if line.startswith(MARK):
            found.extend(_options(line[len(MARK) :]))
    return found


def _options(line: str) -> list[tuple[str, str]]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return [("", line.strip())]
    found: list[tuple[str, str]] = []
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            found.append(("", word))
            continue
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
        else:
            option, equals = _SHORT.get(word[:2], word), ""
            value = word[2:].removeprefix("=") if word[:2] in _SHORT else ""
        takes_next = not equals and not value and option not in _FLAGS
        if takes_next and words and not words[0].startswith("-"):
            value = words.pop(0)
        found.append((option, value))
    return found


def _take(asked: _Asked, option: str, value: str) -> None:
    if not option:
        asked.notes.append(f"{value!r} is left out: it belongs to no option")
    elif option in _REFUSED and not (option == "exclusive" and value in ("user", "mcs")):
        raise asked.refuse(option, "Moulin cannot do this yet", _REFUSED[option])
    elif option in _OWN_WAY:
        asked.notes.append(f"--{option} is not needed: {_OWN_WAY[option]}")
    elif option in _UNDERSTOOD:
        asked.values[option] = value
    else:
        asked.notes.append(f"--{option} is left out: Moulin does not know it")


_UNDERSTOOD: Final = frozenset(
    {
        *("job-name", "time", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "partition"),
        *("mem", "mem-per-cpu", "gres", "gpus", "gpus-per-node", "gpus-per-task", "array"),
        *("dependency", "chdir", "export", "hold", "signal"),
    }
)


def _count(written: str) -> int:
    return max(1, int(written))


def _nodes(written: str) -> int:
    """Read `4` or `2-4`, of which the least is asked for."""
    return _count(written.partition("-")[0])


def _tasks(asked: _Asked) -> tuple[int, int]:
    """Return nodes and tasks on each, as few nodes as the numbers allow."""
    per_node = asked.read("ntasks-per-node", _count, 0)
    nodes = asked.read("nodes", _nodes, 0)
    tasks = asked.read("ntasks", _count, 0)
    nodes = nodes or (-(-tasks // per_node) if tasks and per_node else 1)
    return nodes, per_node or max(1, -(-tasks // nodes))


def _memory(asked: _Asked, cpus: int) -> dict[str, object]:
    per_node = asked.read("mem", parse_slurm_memory_bytes, 0)
    per_cpu = asked.read("mem-per-cpu", parse_slurm_memory_bytes, 0)
    if "mem" in asked.values and not per_node:
        raise asked.refuse("mem", "0, all memory of a node", "name an amount, such as 64G")
    if not per_node and not per_cpu:
        asked.notes.append("no --mem: each node gives what a job has without asking, 512 MB")
        return {}
    return {"memory": str(per_node or per_cpu * cpus)}


def _accelerators(
    asked: _Asked, nodes: int, tasks_per_node: int, classes: Collection[str]
) -> dict[str, object]:
    kind, count = "", 0
    for part in asked.values.get("gres", "").split(","):
        found = _GRES.fullmatch(part.strip())
        if found is not None:
            kind, count = found[1] or "", int(found[2] or 1)
        elif part.strip() not in ("", "none"):
            asked.notes.append(f"--gres={part.strip()} is left out: only GPUs are known")
    for option, times, over in (
        ("gpus", 1, nodes),
        ("gpus-per-node", 1, 1),
        ("gpus-per-task", tasks_per_node, 1),
    ):
        written = asked.values.get(option)
        found = _GPUS.fullmatch(written) if written else None
        if written and found is None:
            raise asked.refuse(option, f"cannot read {written!r}", "write 8, or h100:8")
        if found is not None:
            kind, count = found[1] or kind, -(-int(found[2]) * times // over)
    if not count:
        return {}
    spelled = next((name for name in classes if name.casefold() == kind.casefold()), kind)
    return {"accelerators": f"{spelled}:{count}" if spelled else str(count)}


def _environment(asked: _Asked, nodes: int, tasks_per_node: int, cpus: int) -> dict[str, object]:
    """Return what makes `srun` in the script start as many tasks as it asks for."""
    tasks = asked.read("ntasks", _count, nodes * tasks_per_node)
    values: dict[str, object] = {
        "SLURM_NTASKS": str(tasks),
        "SLURM_NPROCS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks_per_node),
        "SLURM_TASKS_PER_NODE": f"{tasks_per_node}(x{nodes})",
        "SLURM_CPUS_PER_TASK": str(cpus),
        "SRUN_CPUS_PER_TASK": str(cpus),
        "SLURM_OVERLAP": "1",
    }
    for word in asked.values.get("export", "").split(","):
        name, equals, value = word.partition("=")
        if equals:
            values[name] = value
    return values


def _rest(asked: _Asked) -> dict[str, object]:
    body: dict[str, object] = {}
    limit_s = asked.read("time", parse_slurm_time_s, 0)
    if not limit_s:
        asked.notes.append("no --time: it ends after the project's `job_time_limit`, 1 h if unsaid")
    if "signal" in asked.values:
        body["stop_signal"], before_s = _signal(asked, limit_s)
        body["grace"] = f"{before_s}s"
        limit_s -= before_s if limit_s else 0
    if limit_s:
        body["time_limit"] = f"{limit_s}s"
    if "partition" in asked.values:
        body["where"] = {"zones": asked.values["partition"].split(",")}
    if "array" in asked.values:
        body["array"] = asked.values["array"]
    if "hold" in asked.values:
        body["hold"] = True
    after = [_after(asked, part) for part in asked.values.get("dependency", "").split(",") if part]
    if after:
        body["after"] = [each for part in after for each in part]
    return body


def _signal(asked: _Asked, limit_s: int) -> tuple[str, int]:
    """Read `B:USR1@120`: which signal comes how many seconds before the end, to all processes."""
    written = asked.values["signal"]
    found = _SIGNAL.fullmatch(written)
    name = found[1].upper().removeprefix("SIG") if found is not None else ""
    if name.isdigit():
        name = next((each.name[3:] for each in Signals if each.value == int(name)), name)
    if found is None or name not in STOP_SIGNALS:
        hint = f"write one of {', '.join(STOP_SIGNALS)}, such as B:USR1@120"
        raise asked.refuse("signal", f"cannot send {written!r}", hint)
    before_s = int(found[2]) if found[2] else _SIGNAL_BEFORE_S
    if limit_s and before_s >= limit_s:
        raise asked.refuse(
            "signal", f"{before_s} s before the end of {limit_s} s", "give more time"
        )
    asked.notes.append(
        f"--signal: {name} goes to all of its processes, and {before_s} s later KILL"
    )
    return name, before_s


def _after(asked: _Asked, written: str) -> list[dict[str, str]]:
    """Read `afterok:ID[:ID…]` of jobs that Moulin has; Slurm's own numbers mean nothing here."""
    found = _DEPENDENCY.fullmatch(written)
    if found is None:
        raise asked.refuse(
            "dependency", f"{written!r} is not possible here", "write afterok:ID or afterany:ID"
        )
    ids = found[2].split(":")
    if any(each.isdigit() for each in ids):
        raise asked.refuse(
            "dependency",
            f"{written!r} names a job of Slurm, which Moulin cannot wait for",
            "name jobs that Moulin started, by id or name",
        )
    return [{"workload": each, "when": found[1].removeprefix("after")} for each in ids]


def _interpreter(text: str) -> tuple[str, ...]:
    first = text.partition("\n")[0]
    words = tuple(first[2:].split()) if first.startswith("#!") else ()
    return words or DEFAULT_SHELL
