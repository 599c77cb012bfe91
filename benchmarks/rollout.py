"""Does a rolling update, and the way back, drop a stream?

`--streams` clients stream from a real model without a pause while its replicas are replaced by
ones with another context, and then by the former ones again. A stream is dropped when it is not
answered with 200 or does not end with `[DONE]`. `crossing` are streams that were under way when a
replica was told to leave: without them the figure would prove nothing.
"""

import argparse
import time
from typing import Any

from benchmarks._moulin import wait_for
from benchmarks._serving import MODEL, Served, Streams, serving
from moulin.domain.control import RolloutWanted
from moulin.domain.workload import EndpointSpec

ROLLED_S = 180.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how much is under way."""
    parser.add_argument("--streams", type=int, default=6, help="streams at any time")
    parser.add_argument("--replicas", type=int, default=2, help="replicas before and after")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each stream")
    parser.add_argument("--only-there", action="store_true", help="do not go back as well")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Roll out and back under load."""
    endpoint = EndpointSpec(
        model=MODEL, replicas=options.replicas, context_tokens=1024, parallel_requests=4
    )
    wishes = [RolloutWanted(context_tokens=2048), RolloutWanted(is_back=True)]
    with serving(endpoint) as served:
        streams = Streams(served, options.tokens)
        streams.start(options.streams)
        try:
            if not wait_for(lambda: len(streams.answers) >= options.streams, ROLLED_S):
                raise RuntimeError("no stream ended before the rollout")
            changes = [
                _roll_out(served, wanted) for wanted in wishes[: 1 if options.only_there else 2]
            ]
        finally:
            answers = streams.finish()
        left = served.processes()
    crossing = sum(
        any(
            answer.begun_s < left_s < answer.ended_s
            for _, leavings in changes
            for left_s in leavings
        )
        for answer in answers
    )
    return {
        "streams": len(answers),
        "dropped": sum(bool(answer.why) for answer in answers),
        "drops": sorted({answer.why for answer in answers if answer.why}),
        "crossing": crossing,
        "rollouts": len(changes),
        "rollout_s": [round(took_s, 1) for took_s, _ in changes],
        "replicas": options.replicas,
        "processes_after": left,
        "model": MODEL,
    }


def _roll_out(served: Served, wanted: RolloutWanted) -> tuple[float, list[float]]:
    """Return how long a rollout took and when replicas were seen to begin leaving."""
    begun_s = time.monotonic()
    view = served.client.endpoints.rollout(served.endpoint, wanted)
    leaving: dict[str, float] = {}

    def is_done() -> bool:
        now = served.view()
        for unit in now.units:
            if unit.replica == "draining":
                leaving.setdefault(unit.attempt, time.monotonic())
        present = [unit for unit in now.units if unit.replica != "stopped"]
        return len(present) == now.units_wanted and all(
            unit.replica == "ready" and unit.revision == view.revision for unit in present
        )

    if not wait_for(is_done, ROLLED_S):
        raise RuntimeError(f"revision {view.revision} does not serve alone: {served.view().units}")
    return time.monotonic() - begun_s, list(leaving.values())
