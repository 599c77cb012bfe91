"""Does a replica on Slurm whose walltime ends cut a stream?

`--streams` clients stream from a real model without a pause while each replica, a job of a real Slurm
with a few seconds to live, is followed by another: `--rollovers` times. A stream is cut when it is not
answered with 200 or does not end with `[DONE]`. `crossing` are streams that were under way when a replica
was told to leave: without them the figure would prove nothing. `without_replica_s_max` is the longest
time in which no replica was ready, as the control plane saw it, looked at five times a second.
"""

import argparse
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks._moulin import moulin_command, up, wait_for
from benchmarks._serving import MODEL, NAME, READY_S, REPLICA, Served, Streams
from moulin.domain.workload import EndpointSpec
from moulin.sdk import Moulin, read_credentials
from tests.slurm_cluster import SlurmCluster, missing_programs, running

LOOK_S: Final = 0.2
# How long one rollover may take beyond the life of its replica.
SLACK_S: Final = 60.0
FACTORY: Final = """\
organisations:
  lab: {{roles: [operator, tenant]}}
sites:
  here: {{country: FR}}
zones:
  hall: {{site: here}}
pools:
  hpc:
    zone: hall
    engine: slurm
    machine_class: H100
    mode: {mode}
    settings:
      partition: batch
      conf: {conf}
      poll_ms: 200
      replica_time_limit: {limit_s}s
      control_url: {control_url}
projects:
  default: {{organisation: lab}}
prices:
  list: {{cpu_hour: 0.02}}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how often, how long a replica lives, and how much is under way."""
    parser.add_argument("--rollovers", type=int, default=20, help="replicas that are followed")
    parser.add_argument("--limit", type=int, default=40, help="seconds each replica may run")
    parser.add_argument("--streams", type=int, default=4, help="streams at any time")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each stream")
    parser.add_argument("--delegated", action="store_true", help="let Slurm choose the nodes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure on a Slurm of its own."""
    missing = missing_programs()
    if missing:
        raise SystemExit(f"error: no Slurm ({', '.join(missing)}): apt-get install slurm-wlm munge")
    with running(SlurmCluster) as cluster:
        return measure(options, cluster)


def measure(options: argparse.Namespace, cluster: SlurmCluster) -> dict[str, Any]:
    """Stream while replicas follow one another on a cluster."""
    with serving_on(cluster, options.limit, is_delegated=options.delegated) as served:
        watch, streams = Watch(served), Streams(served, options.tokens)
        watch.start()
        streams.start(options.streams)
        try:
            within_s = options.rollovers * (options.limit + SLACK_S)
            if not wait_for(lambda: watch.rollovers() >= options.rollovers, within_s):
                raise RuntimeError(f"{watch.rollovers()} rollovers in {within_s:g} s")
        finally:
            answers = streams.finish()
            watch.finish()
    left_s = list(watch.left_s.values())
    return {
        "rollovers": watch.rollovers(),
        "streams": len(answers),
        "cut": sum(bool(answer.why) for answer in answers),
        "without_replica_s_max": round(watch.without_s_max, 1),
        "cuts": sorted({answer.why for answer in answers if answer.why}),
        "crossing": sum(
            any(answer.begun_s < at_s < answer.ended_s for at_s in left_s) for answer in answers
        ),
        "replica_time_limit_s": options.limit,
        "mode": "delegated" if options.delegated else "owned",
        "model": MODEL,
    }


@dataclass
class Watch:
    """What replicas there were, seen from outside: which served, and when each was told to leave."""

    served: Served
    ready: dict[str, float] = field(default_factory=dict)
    left_s: dict[str, float] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    without_s_max: float = 0.0
    is_over: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Look from now on."""
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def finish(self) -> None:
        """Look no more."""
        self.is_over.set()
        if self.thread is not None:
            self.thread.join()

    def rollovers(self) -> int:
        """Return how many replicas served, were told to leave, and have ended."""
        return len(self.gone & self.left_s.keys() & self.ready.keys())

    def _look(self) -> None:
        last_ready_s = time.monotonic()
        while not self.is_over.wait(LOOK_S):
            now_s = time.monotonic()
            present = {unit.attempt: unit.replica for unit in self.served.view().units}
            for attempt, state in present.items():
                if state == "ready":
                    self.ready.setdefault(attempt, now_s)
                    last_ready_s = now_s
                elif state == "draining":
                    self.left_s.setdefault(attempt, now_s)
            self.gone |= self.left_s.keys() - present.keys()
            self.without_s_max = max(self.without_s_max, now_s - last_ready_s - LOOK_S)


@contextmanager
def serving_on(
    cluster: SlurmCluster, limit_s: int, *, is_delegated: bool = False
) -> Iterator[Served]:
    """Put a Moulin in front of a cluster and serve the small model there; stop all of it at the end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moulin-rollover-")))
        data, factory = folder / "data", folder / "factory.yaml"
        conf = cluster.environment["SLURM_CONF"]
        words = {"conf": conf, "limit_s": limit_s, "mode": "delegated" if is_delegated else "owned"}
        factory.write_text(FACTORY.format(**words, control_url='""'))
        running = stack.enter_context(up(data, "--factory", str(factory)))
        factory.write_text(FACTORY.format(**words, control_url=running.control_url))
        subprocess.run(
            moulin_command("apply", str(factory), "--data", str(data), "--yes"),
            check=True,
            capture_output=True,
            timeout=60,
        )
        credentials = read_credentials(data / "credentials.json")
        client = stack.enter_context(Moulin(credentials=credentials))
        if [status.state for status in client.models.fetch(MODEL)][-1] != "ready":
            raise RuntimeError("the model is not to be had")
        endpoint = EndpointSpec(model=MODEL, context_tokens=1024, parallel_requests=4, drain_s=60)
        view = client.endpoints.deploy(NAME, endpoint, resources=REPLICA)
        client.endpoints.wait(view.id, timeout_s=READY_S)
        served = Served(running, client, view.id)
        if not wait_for(lambda: served.replicas("ready") >= 1, READY_S):
            raise RuntimeError(f"no replica is ready: {client.workloads.why(view.id)}")
        yield served
