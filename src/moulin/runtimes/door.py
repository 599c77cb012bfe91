"""The HTTP door of runtimes whose library brings no server: loopback, one key, bounded.

It decides who may ask and what is too large; what a request means is its runtime's business. It
writes nothing of a request anywhere, errors included: an unforeseen one is told by its type alone.
"""

import hmac
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, NamedTuple

from moulin.domain.errors import MoulinError

BODY_BYTES_MAX: Final = 32 * 1024 * 1024
HEAD_S: Final = 120
JSON: Final = "application/json"


class Answer(NamedTuple):
    """A complete answer."""

    status: int
    content_type: str
    body: bytes


Work = Callable[[bytes, Mapping[str, str]], Answer]
"""What answers a request: its body and its headers, their names in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What a server is told: the paths that compute, the key, how many may compute at once."""

    alias: str
    key: str
    parallel: int
    works: Mapping[str, Work]

    def open(self) -> str:
        """Serve from now on in threads of their own; return `host:port`."""
        server = _Server(self)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{server.server_address[1]}"


def as_json(value: object) -> Answer:
    """Return a value as a good answer."""
    return Answer(200, JSON, json.dumps(value, ensure_ascii=False).encode())


def failure(status: int, message: str, param: str | None = None) -> Answer:
    """Return an error in the shape of OpenAI's."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": None}
    return Answer(status, JSON, json.dumps({"error": error}).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, door: Door) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.door = door
        self.slots = threading.BoundedSemaphore(door.parallel)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that left is no news, and its words are not ours to print."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = HEAD_S
    server: _Server

    def do_GET(self) -> None:
        """Tell health to anybody, the model to whoever has the key."""
        if self.path == "/health":
            self._answer(as_json({"status": "ok"}))
        elif not self._is_known():
            self._answer(_UNKNOWN_KEY)
        elif self.path == "/v1/models":
            models = [{"id": self.server.door.alias, "object": "model"}]
            self._answer(as_json({"object": "list", "data": models}))
        else:
            self._answer(_NO_PATH)

    def do_POST(self) -> None:
        """Compute, one request in each slot."""
        length = self.headers.get("content-length", "")
        if not self._is_known():
            self._last(_UNKNOWN_KEY)
        elif not length.isascii() or not length.isdigit() or len(length) > 12:
            self._last(failure(411, "a content-length is needed"))
        elif int(length) > BODY_BYTES_MAX:
            self._last(failure(413, f"a body has at most {BODY_BYTES_MAX} bytes"))
        else:
            self._answer(self._work(self.rfile.read(int(length))))

    def log_message(self, format: str, *args: object) -> None:
        """Keep no line of any request."""

    def _work(self, body: bytes) -> Answer:
        work = self.server.door.works.get(self.path)
        if work is None:
            return _NO_PATH
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.slots:
            return _computed(work, body, headers)

    def _is_known(self) -> bool:
        shown = self.headers.get("authorization", "").encode("utf-8", "replace")
        return hmac.compare_digest(shown, f"Bearer {self.server.door.key}".encode())

    def _last(self, answer: Answer) -> None:
        self.close_connection = True
        self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("content-type", answer.content_type)
        self.send_header("content-length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(answer.body)


def _computed(work: Work, body: bytes, headers: Mapping[str, str]) -> Answer:
    try:
        return work(body, headers)
    except MoulinError as error:
        param = error.details.get("param")
        return failure(error.http_status, error.message, str(param) if param else None)
    except Exception as bug:  # noqa: BLE001 - its message may quote the request, its type does not
        return failure(500, f"the runtime failed: {type(bug).__name__}")


_UNKNOWN_KEY: Final = failure(401, "this key is not known here")
_NO_PATH: Final = failure(404, "there is no such path")
