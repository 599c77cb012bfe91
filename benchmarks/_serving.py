"""A Moulin that serves the small real model, clients that stream from it, and who really runs."""

import contextlib
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks._moulin import Running, up, wait_for
from moulin.domain.views import WorkloadView
from moulin.domain.workload import EndpointSpec, Resources
from moulin.sdk import Moulin, read_credentials

MODEL = "smollm2-135m-instruct"
NAME = "chat"
READY_S = 120.0
ANSWER_S = 300.0
# Half a CPU each: the old and the new replicas of a rollout fit on a machine with two.
REPLICA = Resources(cpu_milli=500)


@dataclass(frozen=True)
class Served:
    """A running Moulin with one endpoint."""

    running: Running
    client: Moulin
    endpoint: str

    def view(self) -> WorkloadView:
        """Return the endpoint as it is."""
        return self.client.workloads.get(self.endpoint)

    def replicas(self, state: str, revision: int = 0) -> int:
        """Return how many replicas are in a state, of any revision or of one."""
        return sum(
            unit.replica == state and revision in (0, unit.revision) for unit in self.view().units
        )

    def processes(self) -> int:
        """Return how many model servers of this Moulin run, by the system's own list."""
        return len(model_servers(self.running.data))

    def is_at_zero(self) -> bool:
        """Say whether no replica is there, nor any process of one."""
        return not any(self.replicas(s) for s in ("ready", "starting", "draining")) and (
            self.processes() == 0
        )


@contextlib.contextmanager
def serving(endpoint: EndpointSpec) -> Iterator[Served]:
    """Start a Moulin in a fresh directory and serve the small model; stop all of it at the end."""
    with tempfile.TemporaryDirectory(prefix="moulin-serving-") as folder:
        data = Path(folder) / "data"
        with up(data, "--country", "FR") as running:
            credentials = read_credentials(data / "credentials.json")
            with Moulin(credentials=credentials) as client:
                stage = "absent"
                for status in client.models.fetch(MODEL):
                    stage = status.state
                if stage != "ready":
                    raise RuntimeError(f"the model is {stage}")
                view = client.endpoints.deploy(NAME, endpoint, resources=REPLICA)
                client.endpoints.wait(view.id, timeout_s=READY_S)
                served = Served(running, client, view.id)
                wanted = endpoint.replicas
                if not wait_for(lambda: served.replicas("ready") >= wanted, READY_S):
                    raise RuntimeError(f"the endpoint has not {wanted} replica(s) ready")
                yield served


def model_servers(data: Path) -> list[int]:
    """Return the process ids of model servers whose key lies in a data directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if str(data).encode() in words and b"moulin.runtimes.llm" in words:
                found.append(int(entry.name))
    return found


@dataclass
class Answer:
    """One streamed answer as its client saw it; `why` is empty when it was whole."""

    begun_s: float
    first_s: float = 0.0
    ended_s: float = 0.0
    why: str = "never ended"


def stream(served: Served, tokens_max: int, answer: Answer | None = None) -> Answer:
    """Ask for one streamed answer and read it to its end; `answer` tells others how far it is."""
    url = urlsplit(served.running.gateway_url)
    answer = answer or Answer(time.monotonic())
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=ANSWER_S)
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Tell a long story about a mill."}],
        "max_tokens": tokens_max,
        "stream": True,
    }
    headers = {
        "authorization": f"Bearer {served.client.credentials.api_key}",
        "content-type": "application/json",
    }
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            answer.why = f"status {response.status}: {response.read(300)!r}"
            return answer
        last = _read_events(response, answer)
        answer.why = "" if last == b"data: [DONE]" else f"ended with {last[:200]!r}"
    except (OSError, http.client.HTTPException) as cause:
        answer.why = f"{type(cause).__name__}: {cause}"
    finally:
        answer.ended_s = time.monotonic()
        connection.close()
    return answer


def _read_events(response: http.client.HTTPResponse, answer: Answer) -> bytes:
    last = b""
    while line := response.readline():
        answer.first_s = answer.first_s or time.monotonic()
        last = line.strip() or last
    return last


@dataclass
class Streams:
    """Clients that ask again and again, each one stream at a time, until they are told to stop."""

    served: Served
    tokens_max: int
    answers: list[Answer] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, count: int) -> None:
        """Let that many clients begin."""
        for _ in range(count):
            thread = threading.Thread(target=self._ask)
            self.threads.append(thread)
            thread.start()

    def finish(self) -> list[Answer]:
        """Let every client end its stream, and return all answers."""
        self.is_over.set()
        for thread in self.threads:
            thread.join()
        return self.answers

    def _ask(self) -> None:
        while not self.is_over.is_set():
            self.answers.append(stream(self.served, self.tokens_max))
