"""Tells webhooks of alerts and ends: one thread, a queue, signed requests, patience; nobody waits for it.

It decides when to try again and when to give up. It calls only addresses that the operator declared,
follows no redirect, sends nothing but that, and reads no more of an answer than its status: a
tenant can neither choose an address nor learn what is behind one. Delivery is at least once; `id` is
the same each time.

    x-moulin-signature: t=SECONDS,v1=HEX    HMAC-SHA-256 of `SECONDS.BODY` under the webhook's secret
"""

import hashlib
import heapq
import hmac
import http.client
import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import orjson

from moulin.controlplane.commands import SettleAlert
from moulin.domain.notices import Notice, WorkloadNotice
from moulin.domain.units import NS_PER_S
from moulin.domain.wire import encode_public
from moulin.identity import webhook_secret

TIMEOUT_S: Final = 10.0
FIRST_WAIT_S: Final = 1.0
WAIT_MAX_S: Final = 600.0
ATTEMPTS_MAX: Final = 40
"""With these waits an alert is tried for about five hours."""
WAITING_MAX: Final = 10_000
_LOG: Final = logging.getLogger(__name__)


@dataclass(order=True, slots=True)
class _Waiting:
    due_s: float
    id: int
    notice: Notice = field(compare=False)
    attempts: int = field(compare=False, default=0)


class Webhooks:
    """See the module. `offer` is called from any thread and never waits."""

    def __init__(
        self,
        *,
        pepper: bytes,
        now_ns: Callable[[], int],
        settle: Callable[[SettleAlert], object],
        first_wait_s: float = FIRST_WAIT_S,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> None:
        self._pepper = pepper
        self._now_ns = now_ns
        self._settle = settle
        self._first_wait_s = first_wait_s
        self._attempts_max = attempts_max
        self._heap: list[_Waiting] = []
        self._known: set[int] = set()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def offer(self, notice: Notice) -> None:
        """Queue an alert, once; beyond the bound it waits in the log for the next start."""
        with self._changed:
            if notice.id in self._known or len(self._known) >= WAITING_MAX or self._is_closed:
                return
            self._known.add(notice.id)
            heapq.heappush(self._heap, _Waiting(0.0, notice.id, notice))
            if self._thread is None:
                # Most factories never alert: no thread before the first.
                self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Stop; what was not told is told after the next start."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            waiting = self._next()
            if waiting is None:
                return
            waiting.attempts += 1
            is_taken = self._is_taken(waiting.notice)
            if is_taken or waiting.attempts >= self._attempts_max:
                self._end(waiting, is_taken=is_taken)
            else:
                self._again(waiting)

    def _next(self) -> _Waiting | None:
        """Wait for the next alert that is due; None when closed."""
        with self._changed:
            while not self._is_closed:
                left_s = self._heap[0].due_s - self._now_s() if self._heap else None
                if left_s is not None and left_s <= 0:
                    return heapq.heappop(self._heap)
                self._changed.wait(left_s)
        return None

    def _again(self, waiting: _Waiting) -> None:
        wait_s = min(WAIT_MAX_S, self._first_wait_s * 2.0 ** (waiting.attempts - 1))
        waiting.due_s = self._now_s() + wait_s
        with self._changed:
            heapq.heappush(self._heap, waiting)

    def _end(self, waiting: _Waiting, *, is_taken: bool) -> None:
        if not is_taken:
            _LOG.warning("alert %d: no webhook took it in %d tries", waiting.id, waiting.attempts)
        self._settle(
            SettleAlert(alert=waiting.id, is_delivered=is_taken, attempts=waiting.attempts)
        )
        with self._changed:
            self._known.discard(waiting.id)

    def _is_taken(self, notice: Notice) -> bool:
        """Send an alert; True when the webhook answered with 2xx in time."""
        body = body_of(notice)
        headers = {
            "content-type": "application/json",
            "user-agent": "moulin-webhook/1",
            "x-moulin-event": event_of(notice),
            "x-moulin-delivery": str(notice.id),
            "x-moulin-signature": signature(
                webhook_secret(self._pepper, notice.url), self._now_ns() // NS_PER_S, body
            ),
        }
        try:
            return 200 <= post(notice.url, body, headers) < 300
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def _now_s(self) -> float:
        return self._now_ns() / NS_PER_S


def event_of(notice: Notice) -> str:
    """Return the kind of event that a webhook is told."""
    return "workload.finished" if isinstance(notice, WorkloadNotice) else "allowance.alerted"


def body_of(notice: Notice) -> bytes:
    """Return what a webhook is sent; the address is not part of it."""
    data = encode_public(notice)
    data.pop("url")
    return orjson.dumps(data)


def signature(secret: str, at_s: int, body: bytes) -> str:
    """Return the header that proves who sent a body and when."""
    signed = hmac.new(secret.encode(), b"%d.%b" % (at_s, body), hashlib.sha256).hexdigest()
    return f"t={at_s},v1={signed}"


def post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """Send one request and return its status; no redirect is followed, no proxy is asked.

    Raises `OSError`, `http.client.HTTPException` or `ValueError` when there is no answer.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            host, parts.port, timeout=TIMEOUT_S, context=ssl.create_default_context()
        )
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    try:
        target = parts.path or "/"
        connection.request(
            "POST", f"{target}?{parts.query}" if parts.query else target, body, headers
        )
        return connection.getresponse().status
    finally:
        connection.close()
