"""A gateway process with a control plane and replicas around it, all on loopback, all real sockets."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moulin.domain.snapshot import (
    GatewaySnapshot,
    JournalRecord,
    KeyView,
    ModelView,
    ProjectView,
    ReplicaView,
)
from moulin.identity.keys import digest, make_key
from tests.integration.gateway.control_fake import ControlFake
from tests.integration.gateway.replica_fake import ReplicaFake

PEPPER = bytes(range(32))
KEY = make_key(b"k" * 20)
OTHER_KEY = make_key(b"o" * 20)
CHAT = "/v1/chat/completions"
PRICE_INPUT_NEUR = 100
PRICE_OUTPUT_NEUR = 300


def key_view(key: str = KEY, **changes: Any) -> KeyView:
    fields: dict[str, Any] = {
        "id": "key_1",
        "digest": digest(PEPPER, key),
        "organisation": "uni",
        "project": "lab",
    }
    return KeyView(**{**fields, **changes})


def replica_view(replica: ReplicaFake, name: str = "end_1.u0.g1", **changes: Any) -> ReplicaView:
    fields: dict[str, Any] = {
        "attempt": name,
        "address": replica.address,
        "key": "replica-secret",
        "zone": "z1",
        "country": "FR",
        "country_basis": "asserted by the operator",
        "parallel_requests": 64,
        "energy_uj_per_token_input": 1000,
        "energy_uj_per_token_output": 20_000,
        "carbon_ng_per_j": 10_000,
    }
    return ReplicaView(**{**fields, **changes})


def model_view(*replicas: ReplicaView, **changes: Any) -> ModelView:
    fields: dict[str, Any] = {
        "name": "smol",
        "endpoint": "end_1",
        "project": "lab",
        "is_public": False,
        "context_tokens": 4096,
        "tokens_output_default": 64,
        "price_input_neur": PRICE_INPUT_NEUR,
        "price_output_neur": PRICE_OUTPUT_NEUR,
        "price_per": 1,
        "replicas": replicas,
    }
    return ModelView(**{**fields, **changes})


def snapshot(*models: ModelView, **changes: Any) -> GatewaySnapshot:
    fields: dict[str, Any] = {
        "version": 1,
        "issued_at_ns": time.time_ns(),
        "staleness_max_s": 60,
        "keys": (key_view(),),
        "models": models,
        "projects": (ProjectView(name="lab", organisation="uni"),),
    }
    return GatewaySnapshot(**{**fields, **changes})


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Plant:
    """The gateway under test. `data` survives its processes."""

    def __init__(self, data: Path, control: ControlFake, name: str = "g1") -> None:
        data.mkdir(exist_ok=True)
        self.name = name
        self.data = data
        self.control = control
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = data / "gateway.log"
        self.words: list[str] = []
        (data / "pepper").write_bytes(PEPPER)
        (data / "service.key").write_text("service-key\n")

    def start(self, *, wait: bool = True, port: int = 0) -> None:
        command = [
            sys.executable, "-m", "moulin.gateway",
            "--control-url", f"http://127.0.0.1:{self.control.port}",
            "--key-file", str(self.data / "service.key"), "--data", str(self.data),
            "--port", str(port or self.port), "--name", self.name, "--grace-s", "1", *self.words,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": "src"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        if wait:
            eventually(self.is_healthy)

    def is_healthy(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/healthz").status == 200
        return False

    def stop(self) -> int:
        """Ask politely and return the exit status."""
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def kill(self) -> None:
        process, self.process = self.process, None
        assert process is not None
        process.kill()
        process.wait()

    def get(self, path: str, key: str = KEY) -> Answer:
        return self._call("GET", path, None, {"authorization": f"Bearer {key}"})

    def post(self, body: Any, path: str = CHAT, key: str = KEY) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._call("POST", path, data, {"authorization": f"Bearer {key}"})

    def chat(self, **fields: Any) -> Answer:
        return self.post(chat_body(**fields))

    def raw(self, data: bytes, timeout_s: float = 10.0) -> bytes:
        """Send bytes, return everything that comes until the gateway closes or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            connection.sendall(data)
            return read_all(connection)

    def ends(self, count: int) -> list[JournalRecord]:
        """Wait until the control plane knows `count` ended requests and return them."""
        eventually(lambda: len(self.control.records()) >= count)
        return self.control.records()

    def _call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": [{"role": "user", "content": "Hello?"}], **fields}


def read_all(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait for a condition; a test that waits in vain fails with the condition's name."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"never came: {condition}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
