"""Runs tasks on the servers of a Ray cluster, through one agent inside it.

This side speaks plain HTTP: Ray's Jobs API starts the agent, the agent answers the verbs, so the
control process imports no Ray. Where each step was given to is on this machine's disk; what became of
it is on its node's. A head or a node that does not answer is unreachable, never gone. Decision 0031.
"""

import contextlib
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from moulin.domain.errors import (
    EngineRefused,
    EngineUnavailable,
    InvalidSpec,
    MoulinError,
    NotFound,
    error_by_code,
)
from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId, StepId
from moulin.domain.needs import Need
from moulin.domain.observation import Claim, LogChunk, NodeCapacity, Observation, TaskPhase
from moulin.domain.plan import StartStep
from moulin.domain.told import skew_ns
from moulin.domain.wire import decode, encode
from moulin.engines.ray.book import FENCED, StepBook
from moulin.engines.ray.jobs import ENDED, Jobs, RayHttp
from moulin.engines.ray.names import node_id
from moulin.engines.ray.package import Package
from moulin.engines.ray.sending import Sender
from moulin.ports.clock import Clock

if TYPE_CHECKING:
    import httpx

# While nobody answers, asking again this often costs a cycle one refused connection.
RETRY_S: Final = 2.0
# An agent that runs but has not answered for so long is replaced; tasks do not notice.
SILENT_S: Final = 120.0
# The longest wait before an agent is started that keeps ending.
AGAIN_S_MAX: Final = 60
LOG_BYTES_MAX: Final = 4 * 1024 * 1024
# What follows a pool's name in that of its agent's job; the pool `a-b` is none of `a`.
_AFTER_POOL: Final = re.compile(r"[0-9a-f]{12}(-[0-9a-f]+)?")
# What no node of a Ray cluster is given; what else one cannot carry it says itself.
_REFUSED: Final = (Need.ENDPOINT, Need.SECRETS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayPool:
    """How a pool's cluster is reached and what runs on its nodes.

    `address` is the head's dashboard, `agent_address` where the agent will listen, at the same
    host. `opens` names the engine of a node, MODULE:CLASS in `package`; `spool` is its directory
    on every node, empty for the default. `python` starts the agent on the head.
    """

    name: str
    address: str
    agent_address: str
    token_file: Path
    package: Package
    opens: str
    machine_class: str = ""
    spool: str = ""
    python: str = "python"


class RayEngine:
    """The engine of one cluster; safe to construct anew at any time over the same directory."""

    def __init__(
        self,
        directory: Path,
        *,
        pool: RayPool,
        clock: Clock,
        rate: Callable[[NodeCapacity, str], NodeCapacity] = lambda capacity, _model: capacity,
        revive: Callable[[], str] | None = None,
    ) -> None:
        """Open or make the book of steps under `directory`; nothing is asked of the cluster yet.

        `rate` states the power of a node from the name of its CPU; `revive` starts a head that
        does not answer, and says in words what it did.
        """
        self._pool = pool
        self._clock = clock
        self._rate = rate
        self._revive = revive
        self._book = StepBook(directory)
        self._jobs = Jobs(RayHttp(pool.address, pool.token_file))
        self._agent = RayHttp(pool.agent_address, pool.token_file)
        self._sender = Sender(self._ask_aside)
        self._job = ""  # the agent's, once it was started or found
        self._silent_since: float | None = None
        self._retry_at = 0.0
        self._trouble = ""
        self._ends = 0  # of agents that never answered, in a row
        self._again_at = 0.0
        self._ended_by = ""

    def start(self, step: StartStep) -> Claim:
        """Start the step unless it was ever started; a repeated call returns the same claim.

        Raises `EngineRefused` when it can never start here, and `EngineUnavailable` while its node,
        or one of its gang's, is away or Ray has not reserved its places.
        """
        self._refuse_what_cannot_run(step)
        if step.task.bundle:
            self._sender.require(step)
        self._book.give(step.step, step.nodes[step.rank])
        return decode(Claim, self._ask("start", {"step": encode(step)}))

    def observe(self, steps: Sequence[StepId]) -> tuple[Observation, ...]:
        """Return one observation per step, in order, from one call however many they are."""
        now_ns = self._clock.now_ns()
        known: dict[StepId, Observation] = {}
        asked: dict[StepId, NodeId] = {}
        for step in steps:
            try:
                node = self._book.node_of(step)
            except InvalidSpec as cause:
                known[step] = _unseen(step, TaskPhase.ABSENT, now_ns, cause.message)
                continue
            if node:
                asked[step] = node
            else:
                words = "never started" if node is None else "stopped before it started"
                known[step] = _unseen(step, TaskPhase.ABSENT, now_ns, words)
        if asked:
            known |= self._look(asked, now_ns)
        return tuple(known[step] for step in steps)

    def stop(self, step: StepId, grace_s: int) -> None:
        """Ask the whole process tree to end, forced after `grace_s`, by its shim.

        A step that was never started is fenced. Raises `EngineUnavailable` while its node is away.
        """
        with contextlib.suppress(InvalidSpec):
            node = self._book.fence(step)
            if node != FENCED:
                self._ask("stop", {"step": step, "node": node, "grace_s": grace_s})

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """Return the nodes the cluster has had since the agent started, by name.

        Raises `EngineUnavailable` when the cluster does not answer.
        """
        found = [self._capacity_of(state) for state in self._ask("nodes", {})]
        return tuple(sorted(found, key=lambda capacity: capacity.node))

    def health(self, nodes: Sequence[NodeId] = ()) -> tuple[NodeReading, ...]:
        """Return a reading of each node that answers, by name; read there, by its own engine.

        Raises `EngineUnavailable` when the cluster does not answer.
        """
        asked_ns = self._clock.now_ns()
        found = [decode(NodeReading, each) for each in self._ask("health", {"nodes": list(nodes)})]
        now_ns = self._clock.now_ns()
        return tuple(
            replace(each, at_ns=now_ns, clock_skew_ns=skew_ns(each.at_ns, asked_ns, now_ns))
            for each in sorted(found, key=lambda reading: reading.node)
        )

    def logs(self, step: StepId, cursor: int, limit_bytes: int) -> LogChunk:
        """Return at most `limit_bytes` (and 4 MiB) of output from byte `cursor`.

        Raises `NotFound` when no such step was started here, `EngineUnavailable` while its node
        is away.
        """
        node = None
        with contextlib.suppress(InvalidSpec):
            node = self._book.node_of(step)
        if not node:
            raise NotFound(f"read the log of {step}", hint="it was never started here")
        limit = max(0, min(limit_bytes, LOG_BYTES_MAX))
        asked = {"step": step, "node": node, "cursor": max(0, cursor), "limit_bytes": limit}
        return decode(LogChunk, self._ask("logs", asked))

    def steps(self) -> tuple[StepId, ...]:
        """Return every step with a live or unreaped process on a node that answers, in step order."""
        return tuple(StepId(step) for step in self._ask("steps", {}))

    def forget(self, step: StepId) -> None:
        """Delete the files of an ended or fenced step; its id could be started again afterwards.

        Raises `InUse` while the end of a started step is not on record, and `EngineUnavailable`
        while its node is away.
        """
        node = self._book.node_of(step)
        if node:
            self._ask("forget", {"step": step, "node": node})
        self._book.drop(step)

    def close(self) -> None:
        """Let go of the connections; the agent and all tasks go on."""
        self._agent.close()
        self._jobs.http.close()

    def _refuse_what_cannot_run(self, step: StartStep) -> None:
        prefix = node_id(f"{self._pool.name}-")
        if not all(node.startswith(prefix) for node in step.nodes[step.rank :] or ("",)):
            raise EngineRefused(
                f"start {step.step}: its node is not one of this engine",
                hint="the plan is out of date",
            )
        if step.endpoint is not None:
            raise EngineRefused(
                f"start {step.step}: replicas of endpoints do not run on Ray pools yet",
                hint="place endpoints on a pool of engine local or slurm",
            )
        if step.secrets or step.secret_files:
            raise EngineRefused(
                f"start {step.step}: what goes to a Ray cluster is not encrypted on its way, so"
                " secrets stay here",
                hint="place work with secrets on a pool of engine local or slurm",
            )

    def _look(self, asked: dict[StepId, NodeId], now_ns: int) -> dict[StepId, Observation]:
        try:
            answers = self._ask("observe", {"steps": list(asked.items())})
        except MoulinError as error:
            unseen = TaskPhase.UNREACHABLE
            return {step: _unseen(step, unseen, now_ns, error.message) for step in asked}
        found = (decode(Observation, answer) for answer in answers)
        return {step: replace(seen, at_ns=now_ns) for step, seen in zip(asked, found, strict=True)}

    def _capacity_of(self, state: dict[str, Any]) -> NodeCapacity:
        told = decode(NodeCapacity, state["capacity"])
        named = told.accelerator_class or self._pool.machine_class
        capacity = replace(
            told,
            machine_class=self._pool.machine_class,
            accelerator_class=named if told.accelerators else "",
            boot_id=state["boot_id"],
            is_reachable=state["is_reachable"],
            lacks=(*_REFUSED, *(Need(each) for each in state["lacks"])),
        )
        return self._rate(capacity, state["cpu_model"])

    def _ask(self, verb: str, request: dict[str, Any]) -> Any:
        """Return an agent's answer; raises its error, or `EngineUnavailable` when there is none."""
        if time.monotonic() < self._retry_at:
            raise EngineUnavailable(self._trouble)
        asked_at = time.monotonic()
        try:
            answer = self._agent.send("POST", f"/{verb}", json=request)
        except EngineUnavailable as error:
            self._mend(error, asked_at)
            raise
        package = answer.headers.get("x-moulin-package")
        if answer.is_error or package != self._pool.package.digest:
            other = EngineUnavailable(
                f"ask {self._agent.address} to {verb}: status {answer.status_code}, package {package}",
                hint="another version's agent, or another program, listens there",
            )
            self._mend(other, asked_at)
            raise other
        self._silent_since = None
        self._ends = 0
        return _value(answer)

    def _ask_aside(self, verb: str, request: dict[str, Any]) -> Any:
        """Return an agent's answer in any thread; whether the agent lives is not looked into."""
        answer = self._agent.send("POST", f"/{verb}", json=request)
        if answer.is_error:
            raise EngineUnavailable(f"ask {self._agent.address} to {verb}: {answer.status_code}")
        return _value(answer)

    def _mend(self, error: EngineUnavailable, asked_at: float) -> None:
        """See to it that an agent runs; a later call may find it.

        The cycle waits for every call: what hangs is left alone for three times as long.
        """
        self._trouble = error.message
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        try:
            self._trouble = f"{error.message}; {self._start_agent(now - self._silent_since)}"
        except MoulinError as other:
            self._trouble = f"{other.message}; {self._revive()}" if self._revive else other.message
        spent_s = time.monotonic() - asked_at
        self._retry_at = time.monotonic() + max(RETRY_S, 3 * spent_s)

    def _start_agent(self, silent_s: float) -> str:
        """Start the agent's job unless it is there; return what was found in words.

        Each start has a name of its own: what is left of an ended job may hold the former for ever.
        """
        found = self._jobs.find(self._job) if self._job else None
        if found is not None and found["status"] in ENDED:
            self._jobs.delete(self._job)
            self._again_at = time.monotonic() + min(2**self._ends, AGAIN_S_MAX)
            self._ends += 1
            self._ended_by = str(found["message"])[-300:]
            found = None
        if found is None and time.monotonic() < self._again_at:
            return f"its agent ended and is started again soon: {self._ended_by}"
        if found is None:
            return self._find_or_submit_agent()
        if found["status"] == "RUNNING" and silent_s > SILENT_S:
            self._jobs.stop(self._job)
            self._silent_since = None
            return "its agent did not answer and is being replaced"
        return f"its agent is {str(found['status']).lower()}"

    def _find_or_submit_agent(self) -> str:
        """Take the agent that runs, of this version, else start one; return in words which."""
        of_pool = f"moulin-{self._pool.name}-"
        of_version = f"{of_pool}{self._pool.package.digest[:12]}"
        named = self._jobs.names(of_pool)
        running = [name for name in named if _AFTER_POOL.fullmatch(name, len(of_pool))]
        for other in running:
            if not other.startswith(of_version):
                self._jobs.stop(other)
        self._job = next((name for name in running if name.startswith(of_version)), "")
        if self._job:
            return "its agent is there and does not answer yet"
        self._job = f"{of_version}-{self._clock.now_ns():x}"
        self._jobs.submit(self._job, self._command(), self._pool.package)
        return "its agent is being started"

    def _command(self) -> str:
        port = urlsplit(self._pool.agent_address).port
        words = [self._pool.python, "-m", "moulin.engines.ray.agent"]
        words += ["--pool", self._pool.name, "--port", str(port)]
        words += ["--package", self._pool.package.digest, "--opens", self._pool.opens]
        words += ["--spool", self._pool.spool]
        return f"exec {shlex.join(words)}"


def _value(answer: "httpx.Response") -> Any:
    body = answer.json()
    if "error" in body:
        error = body["error"]
        raise error_by_code(error["code"])(error["message"], hint=error["hint"])
    return body["value"]


def _unseen(step: StepId, phase: TaskPhase, at_ns: int, evidence: str) -> Observation:
    return Observation(step=step, phase=phase, at_ns=at_ns, evidence=evidence)
