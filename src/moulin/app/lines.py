"""Asks the gateway to carry out lines of batches, each with a pass for the key of its batch."""

import ssl
from collections.abc import Callable
from typing import Final, NamedTuple

from moulin.gateway.http_client import HttpClient, Unreachable
from moulin.identity import make_pass

LINE_TIMEOUT_S: Final = 900.0
PREFIX: Final = "/v1/batch-lines/"


class Answer(NamedTuple):
    """The gateway's answer and the id it gave the request."""

    status: int
    request: str
    body: bytes


class Lines:
    """Connections to one gateway, one line at a time each."""

    def __init__(self, url: Callable[[], str], pepper: bytes) -> None:
        self._url = url
        self._pepper = pepper
        self._idle: dict[str, list[HttpClient]] = {}

    async def ask(self, key: str, line: str, endpoint: str, body: bytes) -> Answer | None:
        """Return the answer; None when the gateway cannot be reached or went away in between."""
        idle = self._idle.setdefault(key, [])
        client = idle.pop() if idle else self._client(key)
        try:
            status, answer = await client.post(f"{PREFIX}{line}{endpoint}", body, LINE_TIMEOUT_S)
        except Unreachable:
            return None
        idle.append(client)
        return Answer(status, client.request_id, answer)

    def close(self) -> None:
        """Close every connection."""
        for clients in self._idle.values():
            for client in clients:
                client.close()
        self._idle.clear()

    def _client(self, key: str) -> HttpClient:
        url = self._url()
        return HttpClient(url, make_pass(self._pepper, key), tls=_own_tls(url))


def _own_tls(url: str) -> ssl.SSLContext | None:
    """Return how to speak to our own gateway over loopback, whose certificate has another name."""
    if not url.startswith("https://127.0.0.1:"):
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
