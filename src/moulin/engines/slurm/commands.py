"""Speaks with Slurm by its own commands, here or over SSH."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.domain.session import Entry
from moulin.engines.slurm.client import JobRequest, complaint, unavailable
from moulin.engines.slurm.formats import (
    SlurmJob,
    SlurmNode,
    SlurmPartition,
    read_accounting,
    read_jobs,
    read_nodes,
    read_partitions,
)
from moulin.engines.slurm.transport import Answer, Transport

# What one command is told of at most: its words have to fit where the system puts them.
NAMED_MAX: Final = 500
_ENDED_ALREADY: Final = ("invalid job id", "already completing", "already completed")
_WAITS_NO_MORE: Final = (*_ENDED_ALREADY, "no longer pending")
_NOT_ALLOWED: Final = "permission denied"
# What `sacct` says with accounting_storage/none, and the status of a shell that finds no such program.
_NOT_STORED: Final = "accounting storage is disabled"
_NO_PROGRAM: Final = 127
_LINEAR: Final = re.compile(r"^SelectType\s*=\s*select/linear\b", re.MULTILINE)
_ARRAY_MAX: Final = re.compile(r"^MaxArraySize\s*=\s*([0-9]+)", re.MULTILINE)


class Commands:
    """A `SlurmClient` by `sbatch`, `squeue`, `scontrol`, `scancel` and, where there is one, `sacct`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._has_accounting = True
        self._is_linear: bool | None = None

    def talking(self, command: Sequence[str], *, is_terminal: bool) -> Entry:
        """Return the program that runs a command where Slurm's are, with pipes or on a terminal."""
        return self._transport.talking(command, is_terminal=is_terminal)

    def jobs(self) -> tuple[SlurmJob, ...]:
        """Return all jobs, by `squeue --json`."""
        return read_jobs(self._ask("read the jobs", "squeue", "--json", "--states=all").output)

    def nodes(self) -> tuple[SlurmNode, ...]:
        """Return all nodes, by `scontrol show node`."""
        return read_nodes(
            _text(self._ask("read the nodes", "scontrol", "show", "node", "-d", "-o"))
        )

    def partitions(self) -> tuple[SlurmPartition, ...]:
        """Return all partitions, by `scontrol show partition`; the first time the configuration, too."""
        answer = self._ask("read the partitions", "scontrol", "show", "partition", "-o")
        if self._is_linear is None:
            told = _text(self._ask("read the configuration", "scontrol", "show", "config"))
            self._is_linear = _LINEAR.search(told) is not None
        return read_partitions(_text(answer), is_linear=self._is_linear)

    def array_size_max(self) -> int:
        """Return what `scontrol show config` says; an index is below MaxArraySize."""
        found = _ARRAY_MAX.search(_text(self._ask("read the limits", "scontrol", "show", "config")))
        return int(found[1]) - 1 if found is not None and int(found[1]) else 0

    def submit(self, job: JobRequest) -> int:
        """Submit by `sbatch`, with the script on its standard input."""
        answer = self._transport.run(sbatch_words(job), stdin=job.script)
        number = answer.output.decode(errors="replace").strip().partition(";")[0]
        if answer.status == 0 and number.isdigit():
            return int(number)
        raise complaint("submit the job", answer.words.replace("sbatch: error: ", ""))

    def find(self, name: str) -> tuple[tuple[int, str], ...]:
        """Return the jobs of that name, by `squeue --name`; an array by its own number."""
        words = ("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F|%k")
        lines = (line.partition("|") for line in _text(self._ask("find a job", *words)).split("\n"))
        return tuple((int(number), said) for number, _, said in lines if number.isdigit())

    def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs, by one `scancel` for many."""
        self._scancel((), jobs)

    def ring(self, jobs: Sequence[str], *, is_gang: bool) -> None:
        """Signal jobs, by one `scancel --signal` for many."""
        self._scancel(("--signal=CONT",) if is_gang else ("--full", "--signal=CONT"), jobs)

    def image_tool(self) -> str:
        """Return `pyxis` where `srun` has its options, else what Apptainer is called, or empty."""
        if b"--container-image" in self._transport.run(("srun", "--help")).output:
            return "pyxis"
        script = "command -v apptainer || command -v singularity"
        found = _text(self._transport.run(("sh", "-c", script))).strip()
        return found.rpartition("/")[2]

    def extend(self, job: str, minutes: int) -> None:
        """Change a job's time limit by `scontrol update`: Slurm asks for an operator's rights."""
        words = ("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        answer = self._transport.run(words)
        if answer.status != 0:
            raise complaint(f"extend job {job}", _said(answer))

    def keep_away(self, jobs: Sequence[str], hosts: Sequence[str]) -> None:
        """Change where waiting jobs may run, by one `scontrol update` for many."""
        for first in range(0, len(jobs), NAMED_MAX):
            some = ",".join(jobs[first : first + NAMED_MAX])
            where = f"ExcNodeList={','.join(hosts)}"
            answer = self._transport.run(("scontrol", "update", f"JobId={some}", where))
            said = answer.words.lower()
            if answer.status != 0 and not any(words in said for words in _WAITS_NO_MORE):
                raise unavailable("keep waiting jobs away from nodes", _said(answer))

    def drain(self, host: str, reason: str) -> None:
        """Drain or resume a node by `scontrol update`; raises `EngineRefused` for who is no operator."""
        state = ("State=DRAIN", f"Reason={reason}") if reason else ("State=RESUME",)
        answer = self._transport.run(("scontrol", "update", f"NodeName={host}", *state))
        if answer.status == 0:
            return
        if _NOT_ALLOWED in answer.words.lower():
            raise EngineRefused(
                f"Slurm says: {_said(answer)}",
                hint="let Moulin's user be an operator in Slurm, or leave the setting `drain` out",
            )
        raise unavailable(f"change node {host}", _said(answer))

    def recall(self, jobs: Sequence[str]) -> Mapping[str, SlurmJob] | None:
        """Return ended jobs by `sacct`; where there is none, or nothing is stored, it is not asked again.

        Any other failure says nothing of the jobs: it raises `EngineUnavailable`.
        """
        if not self._has_accounting:
            return None
        found: dict[str, SlurmJob] = {}
        for first in range(0, len(jobs), NAMED_MAX):
            some = f"--jobs={','.join(jobs[first : first + NAMED_MAX])}"
            columns = "--format=JobID,JobName,State,ExitCode,Start,End"
            words = ("sacct", "--noheader", "--parsable2", "--allocations", some, columns)
            try:
                answer = self._transport.run(words)
            except EngineUnavailable as failure:
                if not isinstance(failure.__cause__, FileNotFoundError):
                    raise
                answer = Answer(_NO_PROGRAM, b"", failure.message)
            if answer.status == _NO_PROGRAM or _NOT_STORED in answer.words.lower():
                self._has_accounting = False
                return None
            if answer.status != 0:
                raise unavailable("ask accounting", _said(answer))
            found.update(read_accounting(_text(answer)))
        return found

    def _scancel(self, options: Sequence[str], jobs: Sequence[str]) -> None:
        for first in range(0, len(jobs), NAMED_MAX):
            some = jobs[first : first + NAMED_MAX]
            answer = self._transport.run(("scancel", "--quiet", *options, *some))
            if answer.status != 0 and not any(w in answer.words.lower() for w in _ENDED_ALREADY):
                raise unavailable("signal the job", _said(answer))

    def _ask(self, what: str, *words: str) -> Answer:
        answer = self._transport.run(words)
        if answer.status != 0:
            raise unavailable(what, _said(answer))
        return answer


def sbatch_words(job: JobRequest) -> tuple[str, ...]:
    """Return the words of one `sbatch`."""
    options = {
        "job-name": job.name,
        "comment": job.comment,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "reservation": job.reservation,
        "constraint": job.constraint,
        "chdir": job.directory,
        "output": job.output,
        "array": f"0-{job.array_size - 1}" if job.array_size else "",
        "nodes": str(job.nodes),
        "ntasks": str(job.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.cpus),
        "mem": f"{job.memory_mib}M",
        "nodelist": ",".join(job.hosts),
        "exclude": ",".join(job.excluded),
        "gres": job.gres,
        "time": job.time,
    }
    given = [f"--{name}={value}" for name, value in options.items() if value]
    if job.is_exclusive:
        given.append("--exclusive")
    return ("sbatch", "--parsable", "--no-requeue", "--open-mode=append", *given)


def _text(answer: Answer) -> str:
    return answer.output.decode(errors="replace")


def _said(answer: Answer) -> str:
    return answer.words or f"status {answer.status}"
