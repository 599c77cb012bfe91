"""Runs tasks as pods through the API of a Kubernetes cluster. Not yet run on a live cluster.

A step's Secret is made before its Job and only once, by a start or by a stop: whoever makes it has
decided. All it knows is in the cluster, so any instance goes on where another ended. A cluster or node
that does not answer is unreachable, never gone. Decision 0032.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from moulin.domain.errors import EngineRefused, EngineUnavailable, InUse, MoulinError, NotFound
from moulin.domain.health import NodeReading
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import (
    ENDED_PHASES,
    SEEN_PHASES,
    Claim,
    LogChunk,
    NodeCapacity,
    Observation,
    TaskPhase,
)
from moulin.domain.plan import StartStep
from moulin.domain.standing import Standing
from moulin.engines.kubernetes.api import Api
from moulin.engines.kubernetes.manifests import (
    ATTEMPT,
    BY,
    FENCED,
    POOL,
    STARTED,
    STEP,
    KubernetesPool,
    Manifest,
    claim,
    environment,
    object_name,
    refuse_what_cannot_run,
    workload,
)
from moulin.engines.kubernetes.readings import capacity, observation, standing
from moulin.engines.kubernetes.wellbeing import reading
from moulin.ports.clock import Clock

PLACED: Final = "moulin-placed"  # the kind of the workload, once it was created
STOPPED: Final = "moulin-stopped-at-ns"
LOG_BYTES_MAX: Final = 4 * 1024 * 1024


class KubernetesEngine:
    """The engine of one pool in one cluster."""

    def __init__(self, pool: KubernetesPool, api: Api, *, clock: Clock) -> None:
        self._pool = pool
        self._api = api
        self._clock = clock
        self._away: frozenset[str] = frozenset()
        self._standings: dict[StepId, Standing] = {}
        self._silence = ""

    def start(self, step: StartStep) -> Claim:
        """Start the step, and with it the gang's Jobs, unless it was ever started.

        Pods of a gang wait until every rank was started. Raises `EngineRefused` when it can never
        start here, `EngineUnavailable` when it cannot be known whether it did.
        """
        refuse_what_cannot_run(self._pool, step)
        made = self._api.create(claim(self._pool, step.step, STARTED, environment(step)))
        found = None if made else self._claim(step.step)
        if found is not None and found["metadata"]["labels"][BY] == FENCED:
            raise EngineRefused(
                f"start {step.step}: it was stopped before it started", hint="start a new attempt"
            )
        if made or (found is not None and not _note(found, PLACED)):
            wanted = workload(self._pool, step)
            self._api.create(wanted)
            self._api.annotate(object_name(step.step), {PLACED: wanted["kind"]})
        return Claim(handle=step.step)

    def observe(self, steps: Sequence[StepId]) -> tuple[Observation, ...]:
        """Return one observation per step, in order, from two calls, or three while some wait."""
        now_ns = self._clock.now_ns()
        mine = f"{POOL}={self._pool.name}"
        try:
            claims = _by_step(self._api.claims(mine))
            pods = _by_step(self._api.pods(mine))
            is_asked = any(step in claims and step not in pods for step in steps)
            there = self._api.workloads(mine) if is_asked else []
        except MoulinError as error:
            self._silence = error.message
            return tuple(
                _plain(step, TaskPhase.UNREACHABLE, now_ns, error.message) for step in steps
            )
        self._silence = ""
        attempts = {found["metadata"]["labels"][ATTEMPT] for found in there}
        held = {
            found["metadata"]["labels"][ATTEMPT] for found in there if found["spec"].get("suspend")
        }
        judged = tuple(
            self._judged(step, claims.get(step), pods.get(step), attempts, now_ns) for step in steps
        )
        for seen in judged:
            self._note_standing(seen, pods.get(seen.step), held)
        return judged

    def standings(self, steps: Sequence[StepId]) -> Mapping[StepId, Standing]:
        """Return what each step's Job or JobSet is called and why it waits, as it was observed last."""
        known = {step: self._standings[step] for step in steps if step in self._standings}
        return {step: replace(found, failure=self._silence) for step, found in known.items()}

    def stop(self, step: StepId, grace_s: int) -> None:
        """End the step's whole attempt, as a gang is stopped as a whole; fence what never started.

        Raises `EngineUnavailable` when it cannot be known whether it was asked to end.
        """
        if self._api.create(claim(self._pool, step, FENCED, {})):
            return
        found, pod = self._claim(step), self._pod(step)
        if found is None:
            raise EngineUnavailable(f"stop {step}: its record is being deleted")
        if found["metadata"]["labels"][BY] == FENCED:
            return
        if pod is not None and self._seen(step, pod).phase in ENDED_PHASES:
            return
        if not _note(found, STOPPED):
            self._api.annotate(object_name(step), {STOPPED: str(self._clock.now_ns())})
        attempt = step.rpartition(".t")[0]
        kind = _note(found, PLACED)
        for each in [kind] if kind else ["Job", "JobSet"]:
            self._api.delete_workload(each, object_name(attempt))
        self._api.delete_pods(f"{ATTEMPT}={attempt}", grace_s)

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """Return the pool's nodes by name."""
        nodes = self._api.nodes(self._pool.selector)
        found = [(node["metadata"]["name"], capacity(self._pool, node)) for node in nodes]
        self._away = frozenset(name for name, node in found if not node.is_reachable)
        return tuple(sorted((node for _, node in found), key=lambda node: node.node))

    def health(self, nodes: Sequence[NodeId] = ()) -> tuple[NodeReading, ...]:
        """Return what the cluster says of each node, by name; nobody looks at its devices."""
        now_ns, prefix = self._clock.now_ns(), f"{self._pool.name}-"
        found = self._api.nodes(self._pool.selector)
        named = {NodeId(f"{prefix}{each['metadata']['name']}"): each for each in found}
        return tuple(
            reading(name, named[name], now_ns)
            for name in sorted(named)
            if not nodes or name in nodes
        )

    def logs(self, step: StepId, cursor: int, limit_bytes: int) -> LogChunk:
        """Return at most `limit_bytes` (and 4 MiB) of output from byte `cursor`.

        Kubernetes has no offsets: what comes before the cursor is read and thrown away. What its
        node has rotated away is lost. Raises `NotFound` when there is no such pod.
        """
        pod = self._pod(step)
        if pod is None:
            raise NotFound(f"read the log of {step}", hint="it was never started, or was stopped")
        start, limit = max(0, cursor), max(0, min(limit_bytes, LOG_BYTES_MAX))
        has_ended = self._seen(step, pod).phase in ENDED_PHASES
        whole = self._api.log(pod["metadata"]["name"], start + limit + 1)
        data = whole[start : start + limit]
        is_end = has_ended and len(whole) <= start + len(data)
        return LogChunk(data=data, next_cursor=start + len(data), is_end=is_end)

    def steps(self) -> tuple[StepId, ...]:
        """Return every step of the pool that starts or runs, in step order."""
        claims = _by_step(self._api.claims(f"{POOL}={self._pool.name},{BY}={STARTED}"))
        seen = self.observe(sorted(claims))
        return tuple(found.step for found in seen if found.phase in SEEN_PHASES)

    def forget(self, step: StepId) -> None:
        """Delete an ended step's objects, and those of its attempt that tell of no other step.

        Raises `InUse` while the step has not ended, `EngineUnavailable` when nobody knows.
        """
        [seen] = self.observe([step])
        if seen.phase is TaskPhase.UNREACHABLE:
            raise EngineUnavailable(f"forget {step}: {seen.evidence}")
        if seen.phase not in ENDED_PHASES:
            raise InUse(f"forget {step}: its end is not on record", hint="stop it first")
        found = self._claim(step)
        if found is None:
            return
        attempt = step.rpartition(".t")[0]
        kind = _note(found, PLACED)
        if kind and len(self._api.claims(f"{ATTEMPT}={attempt}")) == 1:
            self._api.delete_workload(kind, object_name(attempt))
        self._api.delete_claim(object_name(step))

    def _note_standing(self, seen: Observation, pod: Manifest | None, held: set[str]) -> None:
        if seen.phase not in SEEN_PHASES:
            self._standings.pop(seen.step, None)
            return
        attempt = seen.step.rpartition(".t")[0]
        self._standings[seen.step] = standing(
            object_name(attempt), pod, seen.at_ns, is_suspended=attempt in held
        )

    def _claim(self, step: StepId) -> Manifest | None:
        found = self._api.claims(f"{STEP}={step}")
        return found[0] if found else None

    def _pod(self, step: StepId) -> Manifest | None:
        found = self._api.pods(f"{STEP}={step}")
        return found[0] if found else None

    def _seen(self, step: StepId, pod: Mapping[str, Any]) -> Observation:
        is_away = pod.get("spec", {}).get("nodeName", "") in self._away
        return observation(step, pod, self._clock.now_ns(), is_away=is_away)

    def _judged(
        self,
        step: StepId,
        found: Manifest | None,
        pod: Manifest | None,
        attempts: set[str],
        now_ns: int,
    ) -> Observation:
        if found is None:
            return _plain(step, TaskPhase.ABSENT, now_ns, "never started")
        if found["metadata"]["labels"][BY] == FENCED:
            return _plain(step, TaskPhase.ABSENT, now_ns, "stopped before it started")
        if pod is not None:
            return self._seen(step, pod)
        if found["metadata"]["labels"][ATTEMPT] in attempts:
            return _plain(step, TaskPhase.STARTING, now_ns, "its pod is not there yet")
        stopped_ns = int(_note(found, STOPPED) or 0)
        if stopped_ns:
            words = "stopped on request; its pod was deleted"
            return _plain(step, TaskPhase.GONE, now_ns, words, ended_ns=stopped_ns)
        if _note(found, PLACED):
            words = "its job was deleted from the cluster"
            return _plain(step, TaskPhase.GONE, now_ns, words, ended_ns=now_ns)
        return _plain(step, TaskPhase.ABSENT, now_ns, "its start was not finished")


def _plain(
    step: StepId, phase: TaskPhase, at_ns: int, evidence: str, *, ended_ns: int = 0
) -> Observation:
    return Observation(step=step, phase=phase, at_ns=at_ns, evidence=evidence, ended_at_ns=ended_ns)


def _by_step(objects: Sequence[Manifest]) -> dict[StepId, Manifest]:
    found = [(one["metadata"].get("labels") or {}, one) for one in objects]
    return {StepId(labels[STEP]): one for labels, one in found if STEP in labels}


def _note(found: Manifest, name: str) -> str:
    return str((found["metadata"].get("annotations") or {}).get(name, ""))
