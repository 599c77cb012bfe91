"""The load of `crash`, and what its clients noted: jobs asked for, calls made, what came back.

Nothing here reads Moulin's database; notes are what a tenant could have written down.
"""

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks._crash_world import ENDPOINT, LAB, SMALL, World
from moulin.domain.errors import MoulinError
from moulin.domain.workload import (
    Resources,
    Retry,
    TaskTemplate,
    Where,
    WorkloadKind,
    WorkloadSpec,
)

PROGRAM = Path(__file__).with_name("_crash_program.py")
ATTEMPTS_MAX = 3
JOB_PAUSE_S = 0.6
CALL_PAUSE_S = 0.15
CALL_TIMEOUT_S = 60.0
DONE = b"data: [DONE]"


@dataclass
class Job:
    """A job as its owner knows it; `id` once a 201 came back."""

    name: str
    mode: str
    ranks: int
    seconds: float
    id: str = ""

    def file(self, effects: Path, rank: int) -> Path:
        """Return where a task of it writes what it does."""
        return effects / f"{self.name}.{rank}"


@dataclass
class Call:
    """A call of the gateway as its client knows it.

    `is_full` when the whole answer came; `has_begun` when a head with status 200 came.
    """

    project: str
    is_stream: bool
    tokens_output_max: int
    body_bytes: int
    sent_ns: int
    status: int = 0
    request: str = ""
    receipt: str = ""
    tokens: tuple[int, int] | None = None
    is_full: bool = False
    ended_ns: int = 0
    words: str = ""

    @property
    def has_begun(self) -> bool:
        """Whether the client got the head of an answer."""
        return self.status == 200


@dataclass
class Notes:
    """What everybody noted. Lists only grow; each has one writer."""

    jobs: list[Job] = field(default_factory=list)
    calls: list[list[Call]] = field(default_factory=list)
    unconnected: int = 0

    def all_calls(self) -> list[Call]:
        """Return every call that was sent."""
        return [call for each in self.calls for call in each]


class Load:
    """Threads that submit jobs and call the gateway until told to stop."""

    def __init__(self, world: World, seed: int, *, has_model: bool) -> None:
        self.world = world
        self.notes = Notes()
        self._stopping = threading.Event()
        works: list[Callable[[random.Random], None]] = [self._submit]
        if has_model:
            works += [self._caller(LAB, is_stream=True), self._caller(LAB, is_stream=False)]
            works += [self._caller(SMALL, is_stream=False)]
        self._threads = [
            threading.Thread(target=work, args=(random.Random(seed * 100 + number),), daemon=True)
            for number, work in enumerate(works)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask for no more and wait for what is under way."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    # -- jobs ---------------------------------------------------------------------------------

    def _submit(self, dice: random.Random) -> None:
        with self.world.client(LAB) as client:
            while not self._stopping.wait(dice.uniform(0.3, 1.7) * JOB_PAUSE_S):
                job = _draw_job(dice, len(self.notes.jobs))
                self.notes.jobs.append(job)
                spec = _spec(job, self.world)
                while not job.id:
                    # The key makes it one job, however often it has to be asked for.
                    with contextlib.suppress(MoulinError):
                        job.id = client.workloads.submit(spec, idempotency_key=job.name).id
                    if self._stopping.is_set():
                        break

    # -- calls --------------------------------------------------------------------------------

    def _caller(self, project: str, *, is_stream: bool) -> Callable[[random.Random], None]:
        calls: list[Call] = []
        self.notes.calls.append(calls)
        address = urlsplit(self.world.running.gateway_url).netloc

        def work(dice: random.Random) -> None:
            while not self._stopping.wait(dice.uniform(0.3, 1.7) * CALL_PAUSE_S):
                connection = http.client.HTTPConnection(address, timeout=CALL_TIMEOUT_S)
                try:
                    connection.connect()
                except OSError:
                    self.notes.unconnected += 1
                    time.sleep(0.2)
                    continue
                with contextlib.closing(connection):
                    call, body = _draw_call(dice, project, is_stream=is_stream)
                    calls.append(call)
                    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                        self._make(connection, call, body)
                    call.ended_ns = time.monotonic_ns()
                if not call.has_begun:
                    time.sleep(0.5)

        return work

    def _make(self, connection: http.client.HTTPConnection, call: Call, body: bytes) -> None:
        authorization = f"Bearer {self.world.keys[call.project]}"
        headers = {"authorization": authorization, "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        call.request = answer.getheader("x-request-id", "") or ""
        call.receipt = answer.getheader("x-moulin-receipt", "") or ""
        call.status = answer.status
        if answer.status != 200:
            call.words = answer.read(300).decode(errors="replace")
        elif call.is_stream:
            _read_stream(answer, call)
        else:
            call.tokens = _tokens(json.loads(answer.read()))
            call.is_full = call.tokens is not None


def _read_stream(answer: http.client.HTTPResponse, call: Call) -> None:
    while line := answer.readline():
        if line.startswith(DONE):
            call.is_full = True
        elif line.startswith(b"data: {"):
            call.tokens = _tokens(json.loads(line[6:])) or call.tokens


def _tokens(answer: Any) -> tuple[int, int] | None:
    usage = answer.get("usage")
    return (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None


def _draw_job(dice: random.Random, number: int) -> Job:
    modes = ("plain",) * 12 + ("family",) * 3 + ("flaky",) * 3 + ("fails",)
    return Job(
        name=f"job-{number}",
        mode=dice.choice(modes),
        ranks=dice.choice((1, 1, 1, 2)),
        seconds=round(dice.uniform(0.3, 6.0), 2),
    )


def _spec(job: Job, world: World) -> WorkloadSpec:
    # What a rank writes must not depend on where it runs, so the shell names the file.
    file = f"{world.effects}/{job.name}.$RANK"
    run = f'exec python3 -I -S {PROGRAM} "{file}" {job.seconds} {job.mode}'
    return WorkloadSpec(
        kind=WorkloadKind.JOB,
        name=job.name,
        resources=Resources(cpu_milli=50, memory_bytes=60 * 10**6),
        nodes=job.ranks,
        where=Where(zones=(world.zone,)),
        task=TaskTemplate(command=("sh", "-c", run)),
        retry=Retry(attempts_max=ATTEMPTS_MAX, backoff_s=1),
        time_limit_s=300,
        stop_grace_s=2,
    )


def _draw_call(dice: random.Random, project: str, *, is_stream: bool) -> tuple[Call, bytes]:
    tokens_output_max = dice.randint(2, 24)
    fields: dict[str, Any] = {
        "model": ENDPOINT,
        "messages": [{"role": "user", "content": f"Say {dice.randint(0, 999)} in words."}],
        "max_tokens": tokens_output_max,
    }
    if is_stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(fields).encode()
    call = Call(project, is_stream, tokens_output_max, len(body), time.monotonic_ns())
    return call, body
