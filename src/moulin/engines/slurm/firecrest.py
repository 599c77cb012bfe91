"""Speaks with Slurm through FirecREST v2, as its documentation says; not yet run against a live one.

What its API does not tell is not guessed: memory and accelerators of nodes are the operator's words,
what others hold is not seen, and partitions have no longest time. It has no arrays, because it cancels
none of their elements, and no signals. So only delegated pools use it. What it has no field for is said
to Slurm in the script's own `#SBATCH` lines.
"""

import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from moulin.domain.errors import EngineUnavailable
from moulin.engines.slurm.client import JobRequest, complaint, unavailable
from moulin.engines.slurm.formats import (
    NS_PER_S,
    SlurmJob,
    SlurmNode,
    SlurmPartition,
    base_state,
    number,
)
from moulin.engines.slurm.over_http import body_of, read_token
from moulin.engines.slurm.settings import OWNER

TIMEOUT_S: Final = 30.0
_CREATED: Final = 201
_OK: Final = 200
_NO_CONTENT: Final = 204
_NOT_ALLOWED: Final = (401, 403)
_NOT_FOUND: Final = 404
_FIRST_LINE: Final = b"#!/bin/sh\n"
_JOB: Final = re.compile(r"([0-9]+)(?:_([0-9]+))?")
_SAID: Final = re.compile(r"std_err:\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What an operator says of a system: its nodes' memory and accelerators, and the pool's own."""

    memory_bytes: int
    accelerators: int = 0
    directory: Path
    partition: str


class Firecrest:
    """A `SlurmClient` by FirecREST; one connection is kept open."""

    def __init__(self, url: str, *, system: str, token_file: str, stated: Stated) -> None:
        """`url` ends where `/compute` and `/status` begin; the token is read for every call."""
        self._client = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)
        weakref.finalize(self, self._client.close)
        self._url = url
        self._system = system
        self._token_file = token_file
        self._stated = stated

    def jobs(self) -> tuple[SlurmJob, ...]:
        """Return the user's own jobs; FirecREST tells no amounts, so those of others say nothing."""
        bodies = self._listed("read the jobs", f"compute/{self._system}/jobs", "jobs")
        return tuple(job for body in bodies if (job := self._job(body)) is not None)

    def nodes(self) -> tuple[SlurmNode, ...]:
        """Return the nodes, with what the operator says that each has."""
        bodies = self._listed("read the nodes", f"status/{self._system}/nodes", "nodes")
        return tuple(self._node(body) for body in bodies)

    def partitions(self) -> tuple[SlurmPartition, ...]:
        """Return the partitions; the pool's own is taken to be the default."""
        path = f"status/{self._system}/partitions"
        bodies = self._listed("read the partitions", path, "partitions")
        names = [str(body.get("name", "")) for body in bodies]
        return tuple(
            SlurmPartition(name=name, is_default=name == self._stated.partition) for name in names
        )

    def array_size_max(self) -> int:
        """Return 0: an element of an array could not be cancelled."""
        return 0

    def submit(self, job: JobRequest) -> int:
        """Submit a job; raises `EngineRefused` for what Slurm never takes."""
        wanted = {
            "name": job.name,
            "account": job.account,
            "partition": job.partition,
            "reservation": job.reservation,
            "constraints": job.constraint,
            "workingDirectory": job.directory,
            "standardOutput": job.output,
            "env": {"MOULIN_JOB": job.name},
            "script": (
                _FIRST_LINE + _directives(job) + job.script.removeprefix(_FIRST_LINE)
            ).decode(),
        }
        given = {name: value for name, value in wanted.items() if value}
        path = f"compute/{self._system}/jobs"
        answer = self._send("submit the job", "POST", path, {"job": given})
        number_said = number(body_of(answer).get("jobId"))
        if answer.status_code == _CREATED and number_said:
            return number_said
        raise complaint("submit the job", _said(answer))

    def find(self, name: str) -> tuple[tuple[int, str], ...]:
        """Return the jobs of that name, out of the user's own."""
        return tuple((job.id, job.comment) for job in self.jobs() if job.name == name)

    def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs, one after the other; one that is not known has ended."""
        for job in jobs:
            path = f"compute/{self._system}/jobs/{job}"
            answer = self._send("cancel the job", "DELETE", path)
            if answer.status_code not in (_NO_CONTENT, _OK, _NOT_FOUND):
                raise unavailable("cancel the job", _said(answer))

    def ring(self, jobs: Sequence[str], *, is_gang: bool) -> None:
        """Do nothing: there are no signals, and shims look at their files by themselves."""

    def recall(self, jobs: Sequence[str]) -> Mapping[str, SlurmJob] | None:
        """Ask for jobs by number: new ones, or ones with dependencies, may be missing in the list."""
        found: dict[str, SlurmJob] = {}
        for each in jobs:
            answer = self._send("find a job", "GET", f"compute/{self._system}/jobs/{each}")
            if answer.status_code not in (_OK, _NOT_FOUND):
                raise unavailable("find a job", _said(answer))
            for body in body_of(answer).get("jobs") or ():
                job = self._job(body)
                if job is not None and job.key == each:
                    found[each] = job
        return found

    def _job(self, body: Mapping[str, Any]) -> SlurmJob | None:
        """Return a job; what runs in the pool's directory carries the comment that it was given."""
        found = _JOB.fullmatch(str(body.get("jobId", "")))
        if found is None:
            return None
        status, time = body.get("status") or {}, body.get("time") or {}
        state, is_completing = base_state(str(status.get("state") or "").partition(" ")[0])
        name, where = str(body.get("name") or ""), str(body.get("workingDirectory") or "")
        spool = self._stated.directory / "spool"
        return SlurmJob(
            id=int(found[1]),
            array=int(found[1]) if found[2] else 0,
            element=int(found[2]) if found[2] else None,
            name=name,
            state=state,
            is_completing=is_completing,
            comment=self._comment(name) if where.startswith(f"{spool}/") else "",
            user=str(body.get("user") or ""),
            partition=str(body.get("partition") or ""),
            reason=str(status.get("stateReason") or "").replace("None", ""),
            nodes=str(body.get("nodes") or "").replace("None assigned", ""),
            exit_code=number(status.get("exitCode")),
            signal=number(status.get("interruptSignal")),
            started_at_ns=number(time.get("start")) * NS_PER_S,
            ended_at_ns=number(time.get("end")) * NS_PER_S,
        )

    def _comment(self, name: str) -> str:
        try:
            owner = (self._stated.directory / "spool" / OWNER).read_text("utf-8")
        except OSError:
            return ""
        return f"moulin:{owner}:{name}"

    def _node(self, body: Mapping[str, Any]) -> SlurmNode:
        state, stated = body.get("state") or (), self._stated
        words = [state] if isinstance(state, str) else [str(word) for word in state]
        return SlurmNode(
            name=str(body.get("name", "")),
            address=str(body.get("address") or body.get("name", "")),
            flags=frozenset(word.lower().rstrip("*~#!%$@^-") for word in words),
            cpus=number(body.get("cpus")),
            memory_bytes=stated.memory_bytes,
            accelerators=stated.accelerators,
            partitions=tuple(body.get("partitions") or ()),
        )

    def _listed(self, what: str, path: str, key: str) -> Sequence[Mapping[str, Any]]:
        answer = self._send(what, "GET", path)
        bodies = body_of(answer).get(key)
        if answer.status_code != _OK or not isinstance(bodies, list):
            raise unavailable(what, _said(answer))
        return [body for body in bodies if isinstance(body, Mapping)]

    def _send(self, what: str, verb: str, path: str, body: object = None) -> httpx.Response:
        hint = "write an access token of the site's identity provider there"
        headers = {"Authorization": f"Bearer {read_token(self._token_file, hint=hint)}"}
        try:
            answer = self._client.request(verb, path, json=body, headers=headers)
        except httpx.TransportError as cause:
            raise EngineUnavailable(
                f"{what}: FirecREST at {self._url} gave no answer: {cause}",
                hint="see that the pool's setting `firecrest` is right",
            ) from cause
        if answer.status_code in _NOT_ALLOWED:
            raise EngineUnavailable(
                f"{what}: FirecREST does not let us: {_said(answer)}",
                hint="write a new access token into the pool's `rest_token` file",
            )
        return answer


def _directives(job: JobRequest) -> bytes:
    """Return what FirecREST has no field for, as Slurm reads it out of a script."""
    options = {
        "comment": job.comment,
        "qos": job.qos,
        "nodes": str(job.nodes),
        "ntasks": str(job.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(job.cpus),
        "mem": f"{job.memory_mib}M",
        "gres": job.gres,
        "exclude": ",".join(job.excluded),
        "time": job.time,
    }
    lines = [f"#SBATCH --{name}={value}\n" for name, value in options.items() if value]
    flags = ["no-requeue", "open-mode=append", *(["exclusive"] if job.is_exclusive else [])]
    return "".join([*lines, *(f"#SBATCH --{flag}\n" for flag in flags)]).encode()


def _said(answer: httpx.Response) -> str:
    """Return what Slurm said, where FirecREST passes it on, else what FirecREST says."""
    body = body_of(answer)
    words = str(body.get("message") or body.get("detail") or f"status {answer.status_code}")
    found = _SAID.search(words)
    return " ".join((found[1] if found else words).replace("sbatch: error: ", "").split())[:400]
