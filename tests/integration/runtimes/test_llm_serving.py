"""The model runtime with a real model: ready, guarded, silent about what it is asked, stoppable."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from moulin.catalog.entries import SMOLLM2_135M
from moulin.catalog.fit import memory_needed_bytes
from tests.real_model import smollm2

pytestmark = pytest.mark.model

KEY = "a-key-for-this-test"
CONTEXT, PARALLEL = 1024, 2
CANARY = "CANARY7f3a"


@dataclass
class Replica:
    """A running runtime and the way to talk to it."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def ask(self, path: str, body: object = None, key: str = KEY) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=120)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            connection.request("GET" if data is None else "POST", path, data, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@contextmanager
def serving(folder: Path) -> Iterator[Replica]:
    key_file, ready, log = folder / "key", folder / "ready", folder / "log"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    command = [sys.executable, "-m", "moulin.runtimes.llm", "--model", smollm2().path]
    command += ["--alias", "tiny", "--context", str(CONTEXT), "--parallel", str(PARALLEL)]
    command += ["--threads", "2", "--key-file", str(key_file)]
    source = Path(__file__).parents[3] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "MOULIN_READY_FILE": str(ready)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield Replica(process=process, address=ready.read_text().strip(), log=log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def replica(tmp_path_factory) -> Iterator[Replica]:
    with serving(tmp_path_factory.mktemp("replica")) as found:
        yield found


def chat(content: str, **more: object) -> dict[str, object]:
    message = {"role": "user", "content": content}
    return {"model": "tiny", "messages": [message], "max_tokens": 4, **more}


def test_it_answers_and_counts(replica) -> None:
    status, answer = replica.ask("/v1/chat/completions", chat("Say hello."))
    assert status == 200
    said = json.loads(answer)
    assert said["model"] == "tiny"
    assert said["usage"]["completion_tokens"] in range(1, 5)
    assert said["usage"]["prompt_tokens"] > 5


def test_a_stream_ends_with_usage(replica) -> None:
    asked = chat("Say hello.", stream=True, stream_options={"include_usage": True})
    status, answer = replica.ask("/v1/chat/completions", asked)
    assert status == 200
    lines = [line for line in answer.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["usage"]["total_tokens"] > 5


@pytest.mark.parametrize("key", ["", "another-key"])
@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/v1/completions", "/completion", "/tokenize", "/apply-template"],
)
def test_nothing_computes_without_the_key(replica, path, key) -> None:
    assert replica.ask(path, chat("x"), key=key)[0] == 401


@pytest.mark.parametrize("path", ["/slots", "/props", "/metrics", "/v1/models"])
def test_nothing_is_shown_without_the_key(replica, path) -> None:
    assert replica.ask(path, key="")[0] == 401


def test_it_listens_on_the_loopback_address_alone(replica) -> None:
    port = int(replica.address.rpartition(":")[2])
    table = Path(f"/proc/{replica.process.pid}/net/tcp").read_text()
    table6 = Path(f"/proc/{replica.process.pid}/net/tcp6").read_text()
    listening = re.findall(rf"([0-9A-F]+):{port:04X} [0-9A-F]+:0000 0A", table + table6)
    assert listening == ["0100007F"]


REQUESTS: tuple[tuple[str, object], ...] = (
    ("/v1/chat/completions", chat(CANARY)),
    ("/v1/chat/completions", chat(CANARY, stream=True)),
    ("/v1/chat/completions", f'{{"messages": {CANARY}'.encode()),
    ("/v1/chat/completions", b"\xff\xfe" + CANARY.encode()),
    ("/v1/chat/completions", chat(f"{CANARY} " + "word " * 3000)),
    ("/v1/chat/completions", chat("x", tool_choice=CANARY)),
    ("/v1/chat/completions", chat("x", grammar=f"root ::= {CANARY}")),
    ("/v1/chat/completions", chat("x", messages=[{"role": CANARY, "content": {CANARY: 1}}])),
    ("/v1/completions", {"prompt": CANARY, "max_tokens": 2}),
    ("/v1/completions", {"prompt": {CANARY: CANARY}}),
    (f"/{CANARY}", {}),
    (
        "/v1/chat/completions",
        chat(
            "x",
            response_format={"type": "json_schema", "json_schema": {"schema": {"type": CANARY}}},
        ),
    ),
)


def test_what_it_is_asked_never_reaches_its_log(tmp_path) -> None:
    with serving(tmp_path) as replica:
        statuses = [replica.ask(path, body)[0] for path, body in REQUESTS]
        assert {200, 400, 404} <= set(statuses)
        assert replica.stop() == 0
        assert "ready 127.0.0.1:" in replica.log.read_text()
        assert CANARY not in replica.log.read_text(errors="replace")


def test_sigterm_ends_it_while_an_answer_streams(tmp_path) -> None:
    with serving(tmp_path) as replica:
        connection = http.client.HTTPConnection(replica.address, timeout=60)
        body = json.dumps(chat("Tell a long story.", stream=True, max_tokens=900, ignore_eos=True))
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        assert response.read(20)
        assert replica.stop() == 0
        response.close()
        connection.close()


def test_memory_is_what_the_catalogue_says(tmp_path) -> None:
    with serving(tmp_path) as replica:
        long = "the miller mills " * 150
        for number in range(PARALLEL):
            assert replica.ask("/v1/chat/completions", chat(f"{number} {long}"))[0] == 200
        status = Path(f"/proc/{replica.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        used_bytes = int(found[1]) * 1024
    needed = memory_needed_bytes(SMOLLM2_135M, SMOLLM2_135M.variants[0], CONTEXT, PARALLEL)
    # The formula must cover what is used and must not refuse models that would fit well.
    assert 0.75 * needed <= used_bytes <= needed
