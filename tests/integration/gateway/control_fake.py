"""A control plane of the tests: real HTTP, the real wire format, the arithmetic in a few lines.

It gives escrow from budgets, takes journals, and charges what was begun and never ended from its
reservation when an epoch is complete.
"""

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.snapshot import (
    GatewaySnapshot,
    Grant,
    JournalKind,
    JournalRecord,
    SyncReply,
    SyncRequest,
)
from moulin.domain.wire import decode, encode


class ControlFake:
    """Budgets, epochs and the snapshot; `stop` and `start` keep the state, as a real one would."""

    def __init__(self, snapshot: GatewaySnapshot, budgets: Mapping[str, int]) -> None:
        self.lock = threading.Condition()
        self.snapshot = snapshot
        self.budget_left = dict(budgets)
        self.granted: dict[int, dict[str, int]] = {}
        self.returned: dict[int, dict[str, int]] = {}
        self.begun: dict[int, dict[str, JournalRecord]] = {}
        self.ended: dict[int, dict[str, JournalRecord]] = {}
        self.through: dict[int, int] = {}
        self.complete: set[int] = set()
        self.wrong_keys = 0
        self.replies_to_lose = 0
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self._is_stopping = False

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"control": self})
        self._is_stopping = False
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        with self.lock:
            self._is_stopping = True
            self.lock.notify_all()
        server.shutdown()
        server.server_close()

    def publish(self, **changes: object) -> None:
        with self.lock:
            self.snapshot = replace(
                self.snapshot,
                version=self.snapshot.version + 1,
                issued_at_ns=time.time_ns(),
                **changes,  # type: ignore[arg-type]
            )
            self.lock.notify_all()

    def sync(self, request: SyncRequest) -> SyncReply | None:
        with self.lock:
            deadline_s = time.monotonic() + request.wait_s
            while (
                request.wait_s
                and request.snapshot_version == self.snapshot.version
                and not self._is_stopping
                and time.monotonic() < deadline_s
            ):
                self.lock.wait(deadline_s - time.monotonic())
            if self._is_stopping:
                return None
            self._record(request)
            returned = self.returned.setdefault(request.epoch, {})
            for project, amount in request.returns.items():
                returned[project] = returned.get(project, 0) + amount
                self.budget_left[project] += amount
            self._take_lost(request)
            grants = tuple(
                self._grant(request.epoch, w.project, w.amount_neur) for w in request.wants
            )
            if grants and self.replies_to_lose:
                self.replies_to_lose -= 1
                return None
            is_current = request.snapshot_version == self.snapshot.version
            return SyncReply(
                acknowledged_sequence=self.through.get(request.records_epoch, 0),
                now_ns=time.time_ns(),
                snapshot=None if is_current else self.snapshot,
                grants=grants,
            )

    def charged(self, epoch: int, project: str) -> int:
        """What an epoch cost a project: every END, and every BEGIN without one."""
        ended, begun = self.ended.get(epoch, {}), self.begun.get(epoch, {})
        open_requests = [r for name, r in begun.items() if name not in ended]
        records = [*ended.values(), *open_requests]
        return sum(r.amount_neur for r in records if r.project == project)

    def records(self) -> list[JournalRecord]:
        """Every END known so far."""
        with self.lock:
            return [record for epoch in self.ended.values() for record in epoch.values()]

    def _record(self, request: SyncRequest) -> None:
        epoch = request.records_epoch
        through = self.through.setdefault(epoch, 0)
        for record in request.records:
            if record.sequence <= through:
                continue
            assert record.sequence == through + 1, "the journal has a gap"
            through = record.sequence
            book = self.begun if record.kind is JournalKind.BEGIN else self.ended
            known = book.setdefault(epoch, {})
            assert record.request not in known, "a request begins and ends once"
            known[record.request] = record
        self.through[epoch] = through
        if request.is_epoch_complete:
            self.complete.add(epoch)

    def _take_lost(self, request: SyncRequest) -> None:
        """Give back to the budget what was granted in replies that never came."""
        granted = self.granted.setdefault(request.epoch, {})
        returned = self.returned.setdefault(request.epoch, {})
        for project, kept in request.kept.items():
            lost = granted.get(project, 0) - returned.get(project, 0) - kept
            assert lost >= 0, "a gateway cannot keep more than it was granted"
            granted[project] = granted.get(project, 0) - lost
            self.budget_left[project] += lost

    def _grant(self, epoch: int, project: str, wanted: int) -> Grant:
        left = self.budget_left.get(project, 0)
        amount = min(wanted, left)
        self.budget_left[project] = left - amount
        granted = self.granted.setdefault(epoch, {})
        granted[project] = granted.get(project, 0) + amount
        refusal = None
        if amount < wanted:
            refusal = Reason(
                code=ReasonCode.BUDGET_EXCEEDED,
                parameters={"project": project, "left_eur": str(left), "wanted_eur": str(wanted)},
            )
        return Grant(project=project, amount_neur=amount, refusal=refusal)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    control: ControlFake

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["authorization"] != "Bearer service-key":
            self.control.wrong_keys += 1
            self._answer(401, b"{}")
            return
        reply = self.control.sync(decode(SyncRequest, json.loads(body)))
        if reply is None:
            self.close_connection = True
            return
        self._answer(200, json.dumps(encode(reply)).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""
