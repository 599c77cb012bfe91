"""Does an endpoint without replicas answer every request that comes, and how long does the first wait?

A real model with `replicas: 0-1`: each round waits until no model server runs, then sends
`--requests` streams at once and reads them to their end. `cold_request_s_max` is the longest time
from a request to its first byte. The same model asked while it is warm stands beside it.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks._moulin import wait_for
from benchmarks._serving import MODEL, Served, serving, stream
from moulin.domain.workload import EndpointSpec, Scaling

ASLEEP_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how often, and how many requests come at once."""
    parser.add_argument("--rounds", type=int, default=3, help="times to zero and back")
    parser.add_argument("--requests", type=int, default=4, help="requests that come at once")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of each answer")
    parser.add_argument("--idle", type=int, default=2, help="seconds without a request")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Go to zero and back."""
    scaling = Scaling(replicas_max=1, idle_s=options.idle, cold_start_s=120)
    endpoint = EndpointSpec(
        model=MODEL, replicas=1, context_tokens=1024, parallel_requests=2, scaling=scaling
    )
    with serving(endpoint) as served:
        warm_s = _first_bytes_s([stream(served, options.tokens)])
        cold = [_round(served, options) for _ in range(options.rounds)]
    answers = [answer for each in cold for answer in each]
    return {
        "cold_requests": len(answers),
        "cold_request_s_max": max(_first_bytes_s(answers), default=0.0),
        "failed": sum(bool(answer.why) for answer in answers),
        "failures": sorted({answer.why for answer in answers if answer.why}),
        "rounds": options.rounds,
        "warm_request_s": warm_s[0],
        "model": MODEL,
    }


def _round(served: Served, options: argparse.Namespace) -> list[Any]:
    if not wait_for(served.is_at_zero, ASLEEP_S):
        raise RuntimeError(f"a replica is still there after {ASLEEP_S:g} s: {served.view().units}")
    with ThreadPoolExecutor(options.requests) as pool:
        waiting = [pool.submit(stream, served, options.tokens) for _ in range(options.requests)]
    return [each.result() for each in waiting]


def _first_bytes_s(answers: list[Any]) -> list[float]:
    return [round((each.first_s or each.ended_s) - each.begun_s, 2) for each in answers]
