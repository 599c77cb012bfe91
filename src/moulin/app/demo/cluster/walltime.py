"""Step 3: a model that outlives the time its jobs may take, under load, with no stream cut."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

from moulin.app.demo.cluster.stage import ClusterStage
from moulin.app.demo.model import fetch_model
from moulin.app.demo.stage import POLL_S, issue_key, promise
from moulin.domain.views import WorkloadView
from moulin.domain.workload import EndpointSpec, Resources, WorkloadKind, WorkloadSpec

# What a replica's job may take; a cluster has hours, a demo has not.
WALLTIME_S: Final = 45
DRAIN_S: Final = 15
ROLLOVERS: Final = 1
READERS: Final = 2
TOKENS_OUTPUT: Final = 48
READY_S: Final = 180.0
STORY_S: Final = 240.0
QUESTION: Final = "Write a few sentences about mills and rivers."
RESOURCES: Final = Resources(cpu_milli=1000)


@dataclass(slots=True, kw_only=True)
class Counted:
    """What the readers saw; each adds under the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    whole: int = 0
    cut: list[str] = field(default_factory=list)


def outlive_walltime(stage: ClusterStage) -> dict[str, Any]:
    """Serve a model whose replicas' jobs end, and read from it all the time."""
    screen = stage.screen
    name = stage.wanted.model
    fetched = fetch_model(stage, name)
    view = stage.as_tenant.workloads.submit(
        WorkloadSpec(
            kind=WorkloadKind.ENDPOINT,
            name=name,
            endpoint=EndpointSpec(model=name, variant=fetched.variant, drain_s=DRAIN_S),
            resources=RESOURCES,
            time_limit_s=WALLTIME_S,
        )
    )
    stage.endpoint = view.id
    with screen.progress("Slurm starts the replica, which loads the model"):
        view = stage.as_tenant.endpoints.wait(view.id, timeout_s=READY_S)
    first = _serving(view)
    screen.good(f"{name} answers; each replica is a job of Slurm that may last {WALLTIME_S} s")
    secret = issue_key(stage, stage.as_operator, "readers", stage.as_tenant.credentials.project)
    counted, seen = _read_until_followed(stage, secret, first)
    promise(counted.whole > 0, "no stream was read")
    promise(not counted.cut, f"{len(counted.cut)} stream(s) were cut: {counted.cut[:2]}")
    screen.good(
        f"{len(seen) - 1} replica(s) were followed by another before their time ended, while "
        f"{READERS} clients read: {counted.whole} streams, none cut"
    )
    return {"streams": counted.whole, "cut": len(counted.cut), "replicas": len(seen)}


def _read_until_followed(
    stage: ClusterStage, secret: str, first: set[str]
) -> tuple[Counted, set[str]]:
    """Read streams until enough replicas have gone; return what was seen, and which replicas served."""
    counted, stopping = Counted(), threading.Event()
    readers = [
        threading.Thread(target=_read, args=(stage, secret, counted, stopping), daemon=True)
        for _ in range(READERS)
    ]
    for reader in readers:
        reader.start()
    seen, gone = set(first), set[str]()
    deadline_s = time.monotonic() + STORY_S
    try:
        with stage.screen.progress("clients read; the walltime of the first replica passes") as bar:
            while len(gone) < ROLLOVERS:
                promise(time.monotonic() < deadline_s, "no replica was followed by another")
                view = stage.as_tenant.workloads.get(stage.endpoint)
                serving = _serving(view)
                gone |= seen - _alive(view)
                seen |= serving
                bar.update(f"clients read: {counted.whole} streams, {len(seen)} replica(s) so far")
                time.sleep(POLL_S)
    finally:
        stopping.set()
        for reader in readers:
            reader.join(timeout=STORY_S)
    return counted, seen


def _read(stage: ClusterStage, secret: str, counted: Counted, stopping: threading.Event) -> None:
    from openai import OpenAI, OpenAIError

    with OpenAI(base_url=stage.gateway_url, api_key=secret, max_retries=0) as client:
        while not stopping.is_set():
            ending = ""
            try:
                stream = client.chat.completions.create(
                    model=stage.wanted.model,
                    max_tokens=TOKENS_OUTPUT,
                    messages=[{"role": "user", "content": QUESTION}],
                    stream=True,
                )
                for chunk in stream:
                    if chunk.choices and chunk.choices[0].finish_reason:
                        ending = chunk.choices[0].finish_reason
            except (OpenAIError, OSError) as problem:
                with counted.lock:
                    counted.cut.append(str(problem))
                continue
            with counted.lock:
                if ending:
                    counted.whole += 1
                else:
                    counted.cut.append("it ended without a last word")


def _serving(view: WorkloadView) -> set[str]:
    return {u.attempt for u in view.units if any(task.is_ready for task in u.tasks)}


def _alive(view: WorkloadView) -> set[str]:
    return {unit.attempt for unit in view.units if unit.tasks}
