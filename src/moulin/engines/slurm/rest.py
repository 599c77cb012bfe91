"""Speaks with Slurm through slurmrestd, over its socket or HTTP; the form is v0.0.38 (Slurm 22.05).

That form names no nodes, so only delegated pools can use it, and has no accounting of single jobs.
Its own token is read from a file for every call, because tokens are short-lived.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from moulin.domain.errors import EngineRefused, EngineUnavailable, InvalidSpec
from moulin.engines.slurm.client import JobRequest, complaint, unavailable
from moulin.engines.slurm.formats import SlurmJob, SlurmNode, SlurmPartition, read_jobs
from moulin.engines.slurm.importing import read_cluster_nodes, read_cluster_partitions
from moulin.engines.slurm.over_http import body_of, read_token
from moulin.engines.task.task_env import clean_environment

T = TypeVar("T")
VERSION: Final = "v0.0.38"
TIMEOUT_S: Final = 20.0
UNIX: Final = "unix:"
# slurmrestd does not say how long an array may be; this is what Slurm's own default allows.
ARRAY_SIZE_MAX: Final = 1000
_NO_SUCH_JOB: Final = 2017
_ENDED_ALREADY: Final = 2021
_STATUS_OK: Final = 200
_NOT_ALLOWED: Final = (401, 403)
_NOT_FOUND: Final = 404


class Rest:
    """A `SlurmClient` by slurmrestd; one connection is kept open."""

    def __init__(self, url: str, *, user: str, token_file: str) -> None:
        """`url` is `http://HOST:PORT` or `unix:/PATH`; without a file no token is sent."""
        socket = url.removeprefix(UNIX) if url.startswith(UNIX) else None
        self._client = httpx.Client(
            base_url="http://slurmrestd" if socket else url,
            transport=httpx.HTTPTransport(uds=socket) if socket else None,
            timeout=TIMEOUT_S,
            trust_env=False,
        )
        weakref.finalize(self, self._client.close)
        self._where, self._socket = url, socket
        self._user = user
        self._token_file = token_file

    def jobs(self) -> tuple[SlurmJob, ...]:
        """Return all jobs."""
        return read_jobs(self._ask("read the jobs", "jobs"))

    def nodes(self) -> tuple[SlurmNode, ...]:
        """Return all nodes."""
        return self._read("read the nodes", "nodes", read_cluster_nodes)

    def partitions(self) -> tuple[SlurmPartition, ...]:
        """Return all partitions."""
        return self._read("read the partitions", "partitions", read_cluster_partitions)

    def array_size_max(self) -> int:
        """Return what Slurm allows unless it was told otherwise."""
        return ARRAY_SIZE_MAX

    def submit(self, job: JobRequest) -> int:
        """Submit a job; raises `EngineRefused` for what this form cannot say, too."""
        if job.hosts or job.is_exclusive:
            raise EngineRefused(
                f"slurmrestd of {VERSION} is told of no nodes by name, and of none as a whole",
                hint="use a delegated pool, or reach Slurm by its commands",
            )
        wanted = {"script": job.script.decode(), "job": _properties(job)}
        answer = self._send("submit the job", "POST", "job/submit", wanted)
        number = body_of(answer).get("job_id")
        if answer.status_code == _STATUS_OK and isinstance(number, int) and number > 0:
            return number
        raise complaint("submit the job", _said(answer))

    def find(self, name: str) -> tuple[tuple[int, str], ...]:
        """Return the jobs of that name, out of all jobs: slurmrestd looks for none."""
        return tuple((job.array or job.id, job.comment) for job in self.jobs() if job.name == name)

    def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs, one after the other."""
        for job in jobs:
            self._signal(job, "KILL")

    def ring(self, jobs: Sequence[str], *, is_gang: bool) -> None:
        """Signal the steps of gangs; a single task's shim is out of its reach, and looks by itself."""
        for job in jobs if is_gang else ():
            self._signal(job, "CONT")

    def recall(self, jobs: Sequence[str]) -> Mapping[str, SlurmJob] | None:
        """Return None: accounting is another plugin, which this client does not ask."""
        return None

    def _signal(self, job: str, signal: str) -> None:
        answer = self._send("signal the job", "DELETE", f"job/{job}?signal={signal}")
        errors = body_of(answer).get("errors") or ()
        ended = {_NO_SUCH_JOB, _ENDED_ALREADY}
        if any(error.get("error_number") not in ended for error in errors):
            raise unavailable("signal the job", _said(answer))

    def _read(self, what: str, path: str, read: Callable[[bytes], T]) -> T:
        try:
            return read(self._ask(what, path))
        except InvalidSpec as cause:
            raise unavailable(what, cause.message) from cause

    def _ask(self, what: str, path: str) -> bytes:
        answer = self._send(what, "GET", path)
        if answer.status_code != _STATUS_OK:
            raise unavailable(what, _said(answer))
        return answer.content

    def _send(self, what: str, verb: str, path: str, body: object = None) -> httpx.Response:
        headers = {"X-SLURM-USER-NAME": self._user} if self._user else {}
        if self._token_file:
            token = read_token(self._token_file, hint="`scontrol token` writes one")
            headers["X-SLURM-USER-TOKEN"] = token.removeprefix("SLURM_JWT=")
        try:
            if self._socket and not Path(self._socket).is_socket():
                raise httpx.ConnectError("there is no such socket")
            answer = self._client.request(
                verb, f"/slurm/{VERSION}/{path}", json=body, headers=headers
            )
        except httpx.TransportError as cause:
            raise EngineUnavailable(
                f"{what}: slurmrestd at {self._where} gave no answer: {cause}",
                hint="see that slurmrestd runs, and that the pool's setting `rest` names it",
            ) from cause
        if answer.status_code in _NOT_ALLOWED:
            raise EngineUnavailable(
                f"{what}: slurmrestd does not know {self._user or 'us'}: {_said(answer)}",
                hint="write a new token (`scontrol token`) into the pool's `rest_token` file",
            )
        if answer.status_code == _NOT_FOUND:
            raise EngineUnavailable(
                f"{what}: slurmrestd at {self._where} does not speak {VERSION}",
                hint=f"start it with -s openapi/{VERSION}",
            )
        return answer


def _properties(job: JobRequest) -> dict[str, Any]:
    """Return a job in the words of the form; what is empty is left out."""
    words = {
        "name": job.name,
        "comment": job.comment,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "reservation": job.reservation,
        "constraints": job.constraint,
        "current_working_directory": job.directory,
        "standard_output": job.output,
        "array": f"0-{job.array_size - 1}" if job.array_size else "",
        "gres": job.gres,
        "exclude_nodes": ",".join(job.excluded),
        "time_limit": job.time if job.is_unlimited else job.time_limit_minutes,
    }
    return {
        **{name: value for name, value in words.items() if value},
        "nodes": [job.nodes, job.nodes],
        "tasks": job.nodes,
        "tasks_per_node": 1,
        "cpus_per_task": job.cpus,
        "memory_per_node": job.memory_mib,
        "open_mode": "append",
        "requeue": False,
        "environment": clean_environment({}),
    }


def _said(answer: httpx.Response) -> str:
    errors = body_of(answer).get("errors") or ()
    words = [
        str(error.get("description") or error.get("error") or "")
        + (f": {error['error']}" if error.get("description") and error.get("error") else "")
        for error in errors
        if isinstance(error, Mapping)
    ]
    return "; ".join(word for word in words if word) or f"status {answer.status_code}"
