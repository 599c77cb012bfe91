"""What every runtime keeps: readiness, health, its key, one real request, usage, its end, its memory.

A runtime is one module with a `RUNTIME`; adding one is adding it to `CASES` here. Runtimes that are
too large for every run are taken by name: `make conformance RUNTIME=vllm`.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from moulin.app.runtimes import known_runtimes
from moulin.catalog.entries import MODELS
from moulin.catalog.fit import memory_needed_bytes
from moulin.domain.model import VLLM
from moulin.runtimes.tree import below
from moulin.sources.files import describe_file
from tests.real_runtimes import checkpoint, packaged, runtime_command

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]

KEY = "a-key-for-this-test"
GRACE_S = 10
SECRET = "CANARY5d11"
Body = tuple[bytes, str]


@dataclass(frozen=True)
class Case:
    """One runtime: a model for it, and a real request with what its answer must hold."""

    model: str
    path: str
    body: Callable[[], Body]
    holds: Callable[[bytes], bool]
    context: int = 512
    used: Callable[[bytes], int] = lambda answer: json.loads(answer)["usage"]["prompt_tokens"]


def as_json(**fields: object) -> Callable[[], Body]:
    return lambda: (json.dumps(fields).encode(), "application/json")


def a_form() -> Body:
    """A second of silence as WAV, in the form that clients send."""
    samples = bytes(2 * 16_000)
    head = (
        b"RIFF"
        + (36 + len(samples)).to_bytes(4, "little")
        + b"WAVEfmt "
        + bytes.fromhex("1000000001000100803e0000007d000002001000")
    )
    wav = head + b"data" + len(samples).to_bytes(4, "little") + samples
    parts = [
        b'--b1\r\nContent-Disposition: form-data; name="model"\r\n\r\nit\r\n',
        b'--b1\r\nContent-Disposition: form-data; name="temperature"\r\n\r\n0\r\n',
        b'--b1\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
        + SECRET.encode()
        + b"\r\n",
        b'--b1\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + wav,
        b"\r\n--b1--\r\n",
    ]
    return b"".join(parts), "multipart/form-data; boundary=b1"


COMPLETION = as_json(model="it", prompt=f"{SECRET} says", max_tokens=4)
CASES: Mapping[str, Case] = {
    "llm": Case(
        model="smollm2-135m-instruct",
        path="/v1/completions",
        body=COMPLETION,
        holds=lambda answer: json.loads(answer)["usage"]["completion_tokens"] > 0,
    ),
    "embeddings": Case(
        model="all-minilm-l6-v2",
        path="/v1/embeddings",
        body=as_json(model="it", input=[SECRET, "two"]),
        holds=lambda answer: (
            [len(x["embedding"]) for x in json.loads(answer)["data"]] == [384, 384]
        ),
    ),
    "speech_to_text": Case(
        model="whisper-base",
        path="/v1/audio/transcriptions",
        body=a_form,
        holds=lambda answer: "text" in json.loads(answer),
        used=lambda answer: json.loads(answer)["usage"]["audio_ms"],
        context=448,
    ),
    "text_to_speech": Case(
        model="piper-en-us-joe",
        path="/v1/audio/speech",
        body=as_json(model="it", voice="joe", input=SECRET, response_format="wav"),
        holds=lambda answer: answer.startswith(b"RIFF"),
        # What is spoken is known before; the gateway counts it.
        used=lambda answer: len(SECRET),
        context=0,
    ),
}
if os.environ.get("RUNTIME") == VLLM:
    CASES = {**CASES, VLLM: CASES["llm"]}
CHOSEN = [os.environ["RUNTIME"]] if os.environ.get("RUNTIME") else sorted(CASES)


@dataclass
class Replica:
    """A running runtime."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path
    key: str = field(default=KEY)

    def ask(self, path: str, body: Body | None = None, key: str = KEY) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=300)
        data, kind = body or (None, "")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            connection.request(
                "POST" if data else "GET", path, data, {**headers, "content-type": kind}
            )
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def tree(self) -> list[int]:
        """Return the processes of this replica."""
        return [self.process.pid, *below(self.process.pid)]

    def held_bytes(self) -> int:
        """Return what only its end would free, as the engine counts it; shared pages once."""
        wanted = ("Pss_Anon:", "Pss_Shmem:")
        found = 0
        for pid in self.tree():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found += sum(int(x.split()[1]) * 1024 for x in lines if x.startswith(wanted))
        return found

    def peak_bytes(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        alone = int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024
        # Libraries of several processes are in each one's peak.
        return self.held_bytes() if len(self.tree()) > 1 else alone


@contextmanager
def serving(name: str, folder: Path) -> Iterator[Replica]:
    case = CASES[name]
    folder.mkdir(exist_ok=True)
    key_file, ready, log = folder / "key", folder / "ready", folder / "log"
    ready.unlink(missing_ok=True)
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    command = [*runtime_command(name), "--model", model_path(name), "--alias", "it"]
    command += ["--context", str(case.context), "--parallel", "2", "--threads", "2"]
    command += ["--key-file", str(key_file)]
    environment = {**os.environ, "MOULIN_READY_FILE": str(ready)}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=folder
        )
    try:
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield Replica(process=process, address=ready.read_text().strip(), log=log)
    finally:
        process.kill()
        process.wait()


def model_path(name: str) -> str:
    model = CASES[name].model
    return str(checkpoint(model)) if name == VLLM else packaged(model).path


def planned_bytes(name: str) -> int:
    case = CASES[name]
    if name == VLLM:
        model = describe_file(f"file:{checkpoint(case.model)}")
        return memory_needed_bytes(model, model.variants[0], case.context, 2)
    model = MODELS[case.model]
    variant = next(v for v in model.variants if v.sha256 == packaged(case.model).sha256)
    return memory_needed_bytes(model, variant, case.context, 2)


@pytest.fixture(scope="module", params=CHOSEN)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def replica(name, tmp_path_factory) -> Iterator[Replica]:
    with serving(name, tmp_path_factory.mktemp(name)) as found:
        yield found


def test_the_suite_knows_every_runtime() -> None:
    assert set(CASES) <= set(known_runtimes())
    assert set(known_runtimes()) - set(CASES) <= {VLLM}


def test_it_is_ready_when_it_says_so(name, replica) -> None:
    assert replica.address.startswith("127.0.0.1:")
    assert replica.ask("/health", key="")[0] == 200


def test_one_real_request(name, replica) -> None:
    case = CASES[name]
    status, answer = replica.ask(case.path, case.body())
    assert status == 200, answer
    assert case.holds(answer)
    assert case.used(answer) > 0


@pytest.mark.parametrize("key", ["", "another-key"])
def test_nothing_computes_without_the_key(name, replica, key) -> None:
    case = CASES[name]
    assert replica.ask(case.path, case.body(), key=key)[0] == 401
    assert replica.ask("/v1/models", key=key)[0] == 401


def test_nonsense_is_refused_and_it_goes_on(name, replica) -> None:
    case = CASES[name]
    status, _ = replica.ask(case.path, (SECRET.encode(), "application/json"))
    assert 400 <= status < 600
    assert replica.ask(case.path, case.body())[0] == 200


def test_it_takes_no_more_memory_than_planned(name, replica) -> None:
    case = CASES[name]
    assert replica.ask(case.path, case.body())[0] == 200
    assert replica.peak_bytes() <= planned_bytes(name)


def test_what_it_is_asked_is_in_no_log(name, replica) -> None:
    case = CASES[name]
    replica.ask(case.path, case.body())
    replica.ask(case.path, (b'{"model": "' + SECRET.encode(), "application/json"))
    replica.ask(f"/{SECRET}", case.body())
    assert SECRET not in replica.log.read_text()


def test_after_a_crash_it_starts_again_and_a_stop_is_clean(name, tmp_path) -> None:
    with serving(name, tmp_path) as replica:
        tree = replica.tree()
        replica.process.kill()
        replica.process.wait()
        assert_gone(tree)
        assert not is_open(replica.address)
    case = CASES[name]
    with serving(name, tmp_path) as replica:
        assert replica.ask(case.path, case.body())[0] == 200
        tree = replica.tree()
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(timeout=GRACE_S) == 0
        assert_gone(tree)
        assert not is_open(replica.address)


def assert_gone(pids: list[int]) -> None:
    """Wait until none of these processes holds anything any more."""
    deadline_s = time.monotonic() + GRACE_S
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline_s, "something of it lives on"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
