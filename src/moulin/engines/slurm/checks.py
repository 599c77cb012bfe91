"""Asks a Slurm what a pool needs of it, before anybody depends on it; it submits and changes nothing.

Each answer is one finding: fine, a problem, or not to be known from here. What only a node can tell is
`trial.py`.
"""

import contextlib
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineError, EngineRefused
from moulin.domain.finding import Finding, Verdict, fine, problem, unknown
from moulin.domain.slurmwords import expand_hosts
from moulin.engines.slurm.client import JobRequest, SlurmClient
from moulin.engines.slurm.commands import sbatch_words
from moulin.engines.slurm.formats import (
    SlurmNode,
    SlurmPartition,
    find_partition,
    no_partition,
    records,
)
from moulin.engines.slurm.places import CLOSING
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import Answer, Transport
from moulin.engines.task.spool import make_directory, write_once

COMMANDS: Final = ("sbatch", "squeue", "scontrol", "scancel")
CLOCK_S: Final = 5.0
CLOCK_HINT: Final = (
    "let NTP (chrony, say) set the clock of every machine: receipts and ends carry times"
)
_NAMED_MAX: Final = 5
_WHO: Final = (
    *(("AllowGroups", "groups"), ("AllowAccounts", "accounts"), ("AllowQos", "QoS")),
    *(("DenyAccounts", "not accounts"), ("DenyQos", "not QoS")),
)
_ANYBODY: Final = frozenset({"ALL", "(null)", "N/A", ""})
_STORE: Final = "accounting_storage/"
_NONE: Final = ("accounting_storage/none", "(null)")  # the second from 23.11 on
_KEY: Final = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$", re.MULTILINE)
_TEST: Final = re.compile(r"to start at (\S+)")


def check_commands(transport: Transport, host: str) -> tuple[Finding, ...]:
    """Say whether Slurm's commands are there, of which version, as whom, and that machine's clock.

    `host` is the machine that they run on, empty: this one.
    """
    where = f"on {host}, over SSH" if host else "here"
    script = 'for each; do command -v "$each" >/dev/null || echo "$each"; done'
    try:
        missing = _text(transport.run(("sh", "-c", script, "sh", *COMMANDS))).split()
        if missing:
            words = f"{', '.join(missing)} not found {where}"
            hint = "the pool's setting `bin` names the folder they are in"
            return (problem("commands", words, hint),)
        version = _text(transport.run(("sbatch", "--version"))).strip()
        user = _text(transport.run(("id", "-un"))).strip()
        before_s = time.time()
        said = _text(transport.run(("date", "+%s"))).strip()
    except EngineError as failure:
        return (problem("commands", failure.message, failure.hint),)
    found = fine("commands", f"{version} {where}, as user {user}")
    if not host or not said.isdigit():
        return (found,)
    between_s = (before_s, time.time())
    return (found, judge_clock(f"clock of {host}", host, between_s, int(said), 1.0))


def judge_clock(
    name: str, whose: str, between_s: tuple[float, float], told_s: float, grain_s: float = 0.0
) -> Finding:
    """Judge a clock that was read at some time between two times of this machine's own.

    `grain_s` is by how much it may have been cut. Only a difference that is certain is one.
    """
    early_s = between_s[0] - told_s - grain_s
    late_s = told_s - between_s[1]
    off_s = max(early_s, late_s, 0.0)
    if off_s > CLOCK_S:
        way = "behind" if early_s > late_s else "ahead of"
        return problem(name, f"{whose} is at least {off_s:.0f} s {way} this machine", CLOCK_HINT)
    span_s = between_s[1] - between_s[0] + grain_s
    return fine(name, f"{whose} agrees with this machine, to within {max(1.0, span_s):.0f} s")


def check_controller(client: SlurmClient) -> Finding:
    """Say whether the controller answers in a form that is understood."""
    try:
        count = len(client.jobs())
    except EngineError as failure:
        return problem("controller", failure.message, failure.hint)
    return fine("controller", f"answers; it lists {count} jobs")


def check_partition(
    client: SlurmClient, transport: Transport | None, settings: SlurmSettings
) -> Iterator[Finding]:
    """Say whether the partition is there, open, and has nodes that take jobs; who may submit."""
    try:
        partitions, nodes = client.partitions(), client.nodes()
    except EngineError as failure:
        yield problem("partition", failure.message, failure.hint)
        return
    wanted = settings.partition
    found = find_partition(partitions, wanted)
    if found is None:
        names = ", ".join(each.name for each in partitions) or "none"
        yield problem(
            "partition", no_partition(wanted), f"the pool's setting `partition`: Slurm has {names}"
        )
        return
    yield _state(found)
    yield judge_nodes(found, [node for node in nodes if found.name in node.partitions])
    if transport is not None:
        try:
            shown = transport.run(("scontrol", "show", "partition", found.name, "-o"))
        except EngineError as failure:
            yield unknown("who may submit", failure.message, failure.hint)
            return
        yield judge_rights(next(iter(records(_text(shown))), {}))


def _state(partition: SlurmPartition) -> Finding:
    limit_s = partition.time_limit_s
    limit = f"jobs may last {limit_s // 60} min" if limit_s else "jobs may last for ever"
    if partition.state == "UP":
        return fine("partition", f"{partition.name} is up; {limit}")
    hint = f"scontrol update PartitionName={partition.name} State=UP"
    return problem("partition", f"{partition.name} is {partition.state}", hint)


def judge_nodes(partition: SlurmPartition, nodes: Sequence[SlurmNode]) -> Finding:
    """Say how many nodes of a partition take jobs."""
    closed = [node for node in nodes if node.flags & CLOSING]
    count = len(nodes) or len(expand_hosts(partition.nodes))
    open_count = len(nodes) - len(closed)
    gpus = sum(node.accelerators for node in nodes)
    words = f"{open_count} of {count} take jobs{f'; {gpus} GPUs in all' if gpus else ''}"
    if closed:
        named = [f"{node.name} ({node.reason or '+'.join(sorted(node.flags))})" for node in closed]
        more = f" and {len(named) - _NAMED_MAX} more" if len(named) > _NAMED_MAX else ""
        words += f"; not {', '.join(named[:_NAMED_MAX])}{more}"
    if open_count:
        return fine("nodes", words)
    return problem("nodes", words, "`sinfo -R` says why; `scontrol update … State=RESUME`")


def judge_rights(fields: dict[str, str]) -> Finding:
    """Say who may submit to a partition, from what `scontrol show partition` prints."""
    limits = [
        f"{title} {fields[key]}"
        for key, title in _WHO
        if fields.get(key, "") not in _ANYBODY and not _is_said_otherwise(key, fields)
    ]
    if fields.get("RootOnly") == "YES":
        limits.append("root alone")
    return fine("who may submit", "; ".join(limits) or "everybody")


def _is_said_otherwise(key: str, fields: dict[str, str]) -> bool:
    """Say whether Slurm ignores a word: DenyAccounts beside AllowAccounts, and so with QoS."""
    allowed = fields.get(key.replace("Deny", "Allow"), "")
    return key.startswith("Deny") and allowed not in _ANYBODY


def check_accounting(transport: Transport, settings: SlurmSettings) -> Finding:
    """Say whether Slurm keeps accounts, and what is missing where it does not."""
    try:
        return _accounting(transport, settings)
    except EngineError as failure:
        return refused("accounting", failure)


def _accounting(transport: Transport, settings: SlurmSettings) -> Finding:
    told = dict(_KEY.findall(_text(transport.run(("scontrol", "show", "config")))))
    stored = told.get("AccountingStorageType", "")
    if not stored:
        return unknown("accounting", "`scontrol show config` does not tell", "ask it by hand")
    if stored in _NONE:
        words = (
            "no slurmdbd: no accounts to mirror or import, and how a job ended that the controller"
            f" forgot (after {told.get('MinJobAge', '300 sec')}) is known from Moulin's own files alone"
        )
        if settings.is_mirrored:
            return problem("accounting", words, "leave `mirror` out, or have slurmdbd set up")
        return fine("accounting", words)
    answer = transport.run(("sacctmgr", "-nP", "show", "cluster", "format=Cluster"))
    if answer.status != 0:
        said = answer.words or f"status {answer.status}"
        hint = "see that slurmdbd runs, and that `sacctmgr` is beside Slurm's other commands"
        return problem("accounting", f"{stored} is set, and gives no answer: {said}", hint)
    enforced = told.get("AccountingStorageEnforce", "none")
    words = f"{stored.removeprefix(_STORE)} answers; enforced: {enforced}"
    if settings.is_mirrored and "limits" not in enforced:
        hint = "AccountingStorageEnforce=associations,limits in slurm.conf"
        return problem("accounting", f"{words}: Slurm holds nobody to the mirror's limits", hint)
    return fine("accounting", words)


def check_submission(transport: Transport, job: JobRequest) -> Finding:
    """Ask Slurm whether it would take a job with the pool's settings, and when; it submits none."""
    try:
        answer = transport.run((*sbatch_words(job), "--test-only"), stdin=job.script)
    except EngineError as failure:
        return refused("submission", failure)
    said = answer.words.replace("sbatch: ", "").replace("error: ", "")
    given = [
        f"{name} {value}"
        for name, value in (
            *(("account", job.account), ("QoS", job.qos), ("reservation", job.reservation)),
            ("constraint", job.constraint),
        )
        if value
    ]
    what = f"a small job with {', '.join(given)}" if given else "a small job"
    if answer.status == 0:
        start = _TEST.search(said)
        when = f"; it would start at {start[1]}" if start is not None else ""
        return fine("submission", f"Slurm takes {what}{when}")
    hint = "the pool's settings `account`, `qos`, `reservation`, `constraint` and `partition`"
    return problem("submission", f"Slurm refuses {what}: {said}", hint)


def check_directory(directory: Path, *, is_far: bool) -> tuple[Finding, tuple[Path, ...]]:
    """Make a folder in a pool's directory, with a file in it that its owner alone reads.

    Returns all that was made for that, the folder first, nothing where it could not be; `clear` takes
    it away again. `is_far` says that Slurm is reached over SSH.
    """
    hint = "the pool's setting `directory` names a folder that this machine and the nodes share"
    if is_far:
        hint += "; it has to be mounted here too, at the same path"
    folder = directory.resolve() / f".check-{time.time_ns():x}"
    made = tuple(path for path in (folder, *folder.parents) if not path.exists())
    try:
        make_directory(str(folder))
        write_once(str(folder / "here"), b"written by moulin cluster check\n")
    except OSError as failure:
        words = f"{directory} cannot be written here: {failure.strerror}"
        clear(made)
        return problem("directory", words, hint), ()
    return fine("directory", f"{directory} can be written here"), made


def clear(made: Sequence[Path]) -> None:
    """Remove what `check_directory` made, but for folders that others use by now."""
    for folder in made[:1]:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        for folder in made[1:]:
            folder.rmdir()


def refused(name: str, failure: EngineError) -> Finding:
    """Return what became of a question that Slurm did not answer or a job that it did not take."""
    verdict = Verdict.PROBLEM if isinstance(failure, EngineRefused) else Verdict.UNKNOWN
    return Finding(name=name, verdict=verdict, message=failure.message, hint=failure.hint)


def _text(answer: Answer) -> str:
    return answer.output.decode(errors="replace")
