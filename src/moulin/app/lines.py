"""Asks the gateway to carry out lines of batches, each with a pass for the key of its batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from moulin.app.datadir import CREDENTIALS, read_json, trusted_file
from moulin.gateway.http_client import HttpClient, Unreachable
from moulin.gateway.trust import Trust
from moulin.identity import make_pass

LINE_TIMEOUT_S: Final = 900.0
PREFIX: Final = "/v1/batch-lines/"


def own_gateway(data: Path) -> tuple[str, Trust]:
    """Return where the gateway of a data directory answers, and how it is known."""
    known = read_json(data / CREDENTIALS)
    return str(known.get("gateway_url", "")), Trust(trusted_file(data, known))


class Answer(NamedTuple):
    """The gateway's answer and the id it gave the request."""

    status: int
    request: str
    body: bytes


class Lines:
    """Connections to one gateway, one line at a time each."""

    def __init__(self, gateway: Callable[[], tuple[str, Trust]], pepper: bytes) -> None:
        self._gateway = gateway
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
        url, trust = self._gateway()
        return HttpClient(url, make_pass(self._pepper, key), trust=trust)
