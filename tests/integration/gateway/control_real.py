"""The real control plane behind real HTTP for gateways of a test, with replicas of the test's own.

The cycle, the books and the sync are the real ones over a store in memory; time is the machine's.
Only what is served is the test's: its model and its replicas go into every snapshot.
"""

import contextlib
import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from moulin.controlplane.commands import Command, CreateKey, SyncGateway
from moulin.controlplane.cycle import cycle
from moulin.domain.errors import MoulinError
from moulin.domain.factory import Organisation, Project
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.limits import AllowanceView
from moulin.domain.principal import ApiKey, Role
from moulin.domain.snapshot import ModelView, SyncReply, SyncRequest
from moulin.domain.wire import decode, encode
from moulin.identity.keys import digest
from moulin.ledger.allowances import view_of
from tests.integration.controlplane.bench import ADMIN, Bench
from tests.integration.controlplane.serving import GATEWAY
from tests.integration.gateway.plant import KEY, PEPPER

LOOK_AGAIN_S = 0.02


class Clockwork:
    """The machine's time, where a bench expects one that a test moves."""

    def now_ns(self) -> int:
        return time.time_ns()

    @property
    def time_ns(self) -> int:
        return time.time_ns()

    @time_ns.setter
    def time_ns(self, value: int) -> None:
        """Time cannot be moved here."""


class RealBench(Bench):
    """A bench that starts with the machine's clock."""

    def open(self) -> None:
        self.clock = Clockwork()  # type: ignore[assignment]
        super().open()


class ControlReal:
    """One leading control plane; `tell` gives it a command, gateways find it at `port`."""

    def __init__(self, *models: ModelView, key: dict[str, Any], **project: Any) -> None:
        self.bench = RealBench()
        self.models = models
        self.lock = threading.RLock()
        self.is_stopping = False
        self.shares: dict[str, int] = {}
        organisation = project.pop("organisation_limits", {})
        self.bench.apply(
            Organisation(name="lab", **organisation),
            Project(name="atelier", organisation="lab", **project),
        )
        self.tell(
            CreateKey(
                principal=ADMIN,
                key=ApiKey(
                    id=KeyId("key_1"),
                    name="k",
                    role=Role.MEMBER,
                    organisation=OrganisationId("lab"),
                    project=ProjectId("atelier"),
                    digest=digest(PEPPER, KEY),
                    **key,
                ),
            )
        )
        handler = type("Handler", (_Handler,), {"control": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.is_stopping = True
        self._server.shutdown()
        self._server.server_close()

    def tell(self, command: Command) -> Any:
        with self.lock:
            call = self.bench.plane.inbox.call(command)
            cycle(self.bench.plane, 0.0)
        return call.result(timeout=0)

    def allowances(self) -> list[AllowanceView]:
        with self.lock:
            spending = self.bench.plane.books.allowances.spending
            return [view_of(name, each, time.time_ns()) for name, each in sorted(spending.items())]

    def sync(self, request: SyncRequest) -> SyncReply:
        deadline_s = time.monotonic() + request.wait_s
        self.shares[request.gateway] = request.share.slices if request.share else 0
        reply: SyncReply = self.tell(SyncGateway(principal=GATEWAY, request=request))
        while (
            request.wait_s
            and reply.snapshot is None
            and reply.share == request.share
            and time.monotonic() < deadline_s
            and not self.is_stopping
        ):
            time.sleep(LOOK_AGAIN_S)
            reply = self.tell(SyncGateway(principal=GATEWAY, request=request))
        if reply.snapshot is None:
            return reply
        return replace(reply, snapshot=replace(reply.snapshot, models=self.models))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    control: ControlReal

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status, answer = 200, b""
        try:
            reply = self.control.sync(decode(SyncRequest, json.loads(body)))
            answer = json.dumps(encode(reply)).encode()
        except MoulinError as error:
            status, answer = error.http_status, b"{}"
        with contextlib.suppress(ConnectionError):
            self._answer(status, answer)

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""
