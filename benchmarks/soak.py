"""Does the gateway's memory stay flat over many requests?

JSON requests and streams take turns through one gateway, without a pause, for the time given. Growth
is resident memory at the end less what it was after the first part, when caches, pools and connections
are there. `requests` are those the gateway itself counted after that.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks._gateway import (
    BODY,
    ControlStub,
    free_port,
    load,
    moulin_command,
    own_count,
    rss_mb,
    snapshot,
    started,
)

WARM_SHARE: Final = 0.2
SLICE_S: Final = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say for how long."""
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--hours", type=float, default=0.0, help="instead of minutes")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Load the gateway and watch its memory."""
    seconds = 3600 * options.hours or 60 * options.minutes
    streamed = json.dumps({**json.loads(BODY), "stream": True})
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moulin-bench-")))
        mock, port = free_port(), free_port()
        mock_command = [sys.executable, "-m", "benchmarks._sse_mock", str(mock)]
        stack.enter_context(started(mock_command, cores[0], mock))
        control = ControlStub(snapshot(f"127.0.0.1:{mock}"))
        process = stack.enter_context(
            started(moulin_command(folder, control, port), cores[-1], port)
        )
        os.sched_setaffinity(0, {cores[0]})
        slice_s = min(SLICE_S, max(1.0, seconds * WARM_SHARE / 2))
        begin_s = time.monotonic()
        samples: list[float] = []
        base_mb, base_count, errors = 0.0, 0, 0
        while time.monotonic() - begin_s < seconds or not base_mb:
            for body in (BODY, streamed):
                errors += load(folder, port, slice_s, body)[1]
            if not base_mb and time.monotonic() - begin_s >= seconds * WARM_SHARE:
                base_mb, base_count = rss_mb(process.pid), own_count(port)
            elif base_mb:
                samples.append(rss_mb(process.pid))
        end_mb = rss_mb(process.pid)
        return {
            "requests": own_count(port) - base_count,
            "rss_growth_mb": round(end_mb - base_mb, 1),
            "minutes": round((time.monotonic() - begin_s) / 60, 1),
            "rss_mb": {"first": base_mb, "most": max([base_mb, *samples]), "last": end_mb},
            "rss_mb_by_slice": samples,
            "errors": errors,
        }
