"""Load generator of `control_path`: one HTTP request per job, over kept connections, timed.

Run in its own process: `python -m benchmarks._submit OUT URL KEY PREFIX JOBS RATE CONNECTIONS`; RATE
0 means as fast as answers come. Writes one JSON object to OUT: send and answer times by job name.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

LINE_END = b"\r\n"


def request_bytes(name: str, key: str, host: str) -> bytes:
    """Return the whole request that submits one job."""
    body = json.dumps(
        {
            "kind": "job",
            "name": name,
            "resources": {"cpu_milli": 1000, "memory_bytes": "100000000"},
            "task": {"command": ["true"], "env": {"MOULIN_SIMULATED_S": "1"}},
            "time_limit_s": 60,
        }
    ).encode()
    head = (
        f"POST /api/v1/projects/default/workloads HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def submit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> int:
    """Send one request and return its status once the whole answer is read."""
    writer.write(data)
    head = await reader.readuntil(LINE_END * 2)
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(LINE_END)
        if line.startswith(b"content-length")
    )
    await reader.readexactly(length)
    return int(head[9:12])


async def drive(
    url: str, key: str, prefix: str, *, jobs: int, rate: float, connections: int
) -> dict[str, dict[str, int]]:
    """Submit `jobs` jobs and return when each was sent and answered."""
    host = urlsplit(url).netloc
    address, _, port = host.partition(":")
    sent: dict[str, int] = {}
    answered: dict[str, int] = {}
    failed: dict[str, int] = {}
    start = time.monotonic() + 0.2
    numbers = iter(range(jobs))

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(address, int(port))
        for number in numbers:
            name = f"{prefix}-{number}"
            data = request_bytes(name, key, host)
            due = start + number / rate if rate else 0.0
            delay = due - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            # In the open loop a job counts from when it was due, so a slow answer cannot hide.
            late_ns = int(max(0.0, time.monotonic() - due) * 1e9) if rate else 0
            sent[name] = time.time_ns() - late_ns
            status = await submit(reader, writer, data)
            answered[name] = time.time_ns()
            if status != 201:
                failed[name] = status
        writer.close()

    await asyncio.gather(*(worker() for _ in range(connections)))
    return {"sent": sent, "answered": answered, "failed": failed}


def main() -> None:
    """Drive and write."""
    out, url, key, prefix, jobs, rate, connections = sys.argv[1:8]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(
            drive(url, key, prefix, jobs=int(jobs), rate=float(rate), connections=int(connections))
        )
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
