"""Speaks with Slurm through slurmrestd, over its socket or HTTP, in the newest form that both know.

The oldest names no nodes, so only delegated pools can use it; none has accounting of single jobs.
Its own token is read from a file for every call, because tokens are short-lived.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from moulin.domain.errors import EngineError, EngineRefused, EngineUnavailable, InvalidSpec
from moulin.engines.slurm.client import JobRequest, complaint, unavailable
from moulin.engines.slurm.formats import SlurmJob, SlurmNode, SlurmPartition, read_jobs
from moulin.engines.slurm.importing import read_cluster_nodes, read_cluster_partitions
from moulin.engines.slurm.over_http import body_of, read_token
from moulin.engines.slurm.rest_forms import (
    FORMS,
    names_nodes,
    write_excluded,
    write_job,
    write_time_limit,
)
from moulin.engines.task.task_env import clean_environment

T = TypeVar("T")
TIMEOUT_S: Final = 20.0
UNIX: Final = "unix:"
# slurmrestd does not say how long an array may be; this is what Slurm's own default allows.
ARRAY_SIZE_MAX: Final = 1000
# Slurm's numbers of errors: there is no such job, or it has ended.
_ENDED_ALREADY: Final = frozenset({2017, 2021, 2084})
# Or it runs by now.
_WAITS_NO_MORE: Final = _ENDED_ALREADY | {2073}
_STATUS_OK: Final = 200
_NOT_ALLOWED: Final = (401, 403)
_NOT_FOUND: Final = 404
_FAILED: Final = 500


class Rest:
    """A `SlurmClient` by slurmrestd; one connection is kept open."""

    def __init__(self, url: str, *, user: str, token_file: str, folder: str = "") -> None:
        """`url` is `http://HOST:PORT` or `unix:/PATH`; without a file no token is sent.

        `folder` is where the nodes have Slurm's commands, when they are not in the usual places.
        """
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
        self._environment = clean_environment({})
        if folder:
            self._environment["PATH"] = f"{folder}:{self._environment['PATH']}"
        self._form = ""

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
        form = self._spoken("submit the job")
        if (job.hosts or job.is_exclusive) and not names_nodes(form):
            raise EngineRefused(
                f"slurmrestd of {form} is told of no nodes by name, and of none as a whole",
                hint="use a delegated pool, or reach Slurm by its commands",
            )
        wanted = write_job(job, self._environment, form)
        answer = self._send("submit the job", "POST", "job/submit", wanted, form)
        number = body_of(answer).get("job_id")
        if answer.status_code == _STATUS_OK and isinstance(number, int) and number > 0:
            return number
        raise _complaint("submit the job", answer)

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

    def keep_away(self, jobs: Sequence[str], hosts: Sequence[str]) -> None:
        """Change where waiting jobs may run, one after the other."""
        what = "keep waiting jobs away from nodes"
        for job in jobs:
            form = self._spoken(what)
            answer = self._send(what, "POST", f"job/{job}", write_excluded(hosts, form), form)
            if not _numbers(answer) <= _WAITS_NO_MORE:
                raise unavailable(what, _said(answer))

    def extend(self, job: str, minutes: int) -> None:
        """Change a job's time limit: Slurm asks for an operator's rights."""
        what = f"extend job {job}"
        form = self._spoken(what)
        answer = self._send(what, "POST", f"job/{job}", write_time_limit(minutes, form), form)
        if _numbers(answer):
            raise _complaint(what, answer)

    def recall(self, jobs: Sequence[str]) -> Mapping[str, SlurmJob] | None:
        """Return None: accounting is another plugin, which this client does not ask."""
        return None

    def _signal(self, job: str, signal: str) -> None:
        answer = self._send("signal the job", "DELETE", f"job/{job}?signal={signal}")
        if not _numbers(answer) <= _ENDED_ALREADY:
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

    def _spoken(self, what: str) -> str:
        """Return the form that is spoken here, which is asked for once."""
        if not self._form:
            served = (form for form in FORMS if self._is_served(what, form))
            self._form = next(served, "")
        if not self._form:
            raise EngineUnavailable(
                f"{what}: slurmrestd at {self._where} speaks neither {FORMS[0]} nor any form before",
                hint=f"known are {', '.join(reversed(FORMS))}: see the option -s of slurmrestd",
            )
        return self._form

    def _is_served(self, what: str, form: str) -> bool:
        answer = self._call(what, "GET", f"{form}/ping")
        if answer.status_code == _NOT_FOUND:
            return False
        if answer.status_code != _STATUS_OK and not _errors(answer):
            raise unavailable(what, _said(answer))  # whatever stands before slurmrestd says so
        return True

    def _send(
        self, what: str, verb: str, path: str, body: object = None, form: str = ""
    ) -> httpx.Response:
        """Ask in a form, or the one that is spoken here; another slurmrestd may be there by now."""
        form = form or self._spoken(what)
        answer = self._call(what, verb, f"{form}/{path}", body)
        if answer.status_code == _NOT_FOUND and not self._is_served(what, form):
            self._form = ""
            raise unavailable(what, "slurmrestd speaks another form by now")
        return answer

    def _call(self, what: str, verb: str, path: str, body: object = None) -> httpx.Response:
        headers = {"X-SLURM-USER-NAME": self._user} if self._user else {}
        if self._token_file:
            token = read_token(self._token_file, hint="`scontrol token` writes one")
            headers["X-SLURM-USER-TOKEN"] = token.removeprefix("SLURM_JWT=")
        try:
            if self._socket and not Path(self._socket).is_socket():
                raise httpx.ConnectError("there is no such socket")
            answer = self._client.request(verb, f"/slurm/{path}", json=body, headers=headers)
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
        return answer


def _errors(answer: httpx.Response) -> Sequence[Mapping[str, Any]]:
    errors = body_of(answer).get("errors") or ()
    return [error for error in errors if isinstance(error, Mapping)]


def _results(answer: httpx.Response) -> Sequence[Mapping[str, Any]]:
    """Return what went wrong with single elements of an array."""
    results = body_of(answer).get("results") or ()
    return [each for each in results if isinstance(each, Mapping) and each.get("error_code")]


def _numbers(answer: httpx.Response) -> frozenset[object]:
    """Return what Slurm calls the errors of an answer; one that tells of none otherwise has its status."""
    found = frozenset(error.get("error_number") for error in _errors(answer))
    found |= {result["error_code"] for result in _results(answer)}
    return found if found or answer.status_code == _STATUS_OK else frozenset({-answer.status_code})


def _complaint(what: str, answer: httpx.Response) -> EngineError:
    """Return the error for a job that was not taken; who says nothing of Slurm's has not asked it."""
    if answer.status_code >= _FAILED and not _errors(answer):
        return unavailable(what, _said(answer))
    return complaint(what, _said(answer))


def _said(answer: httpx.Response) -> str:
    words = [
        str(error.get("description") or error.get("error") or "")
        + (f": {error['error']}" if error.get("description") and error.get("error") else "")
        for error in (*_errors(answer), *_results(answer))
    ]
    return "; ".join(word for word in words if word) or f"status {answer.status_code}"
