"""The few answers of a Waldur that its site agent needs: one offering, one resource, orders as they come.

It has no opinion of its own: it keeps what it is told and what the test put there.
"""

import json
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

OFFERING, PROVIDER, CUSTOMER, RESOURCE, PROJECT = (
    str(uuid.UUID(int=number)) for number in range(1, 6)
)
USER, NOW = str(uuid.UUID(int=9)), "2026-11-22T12:00:00Z"
ORDERED = {
    "uuid": RESOURCE,
    "name": "alloc",
    "slug": "alloc-1",
    "backend_id": "",
    "project_slug": "proj",
    "customer_slug": "cust",
    "project_uuid": PROJECT,
    "customer_uuid": CUSTOMER,
    "offering_uuid": OFFERING,
    "offering_plugin_options": {},
    "state": "OK",
    "paused": False,
    "downscaled": False,
    "restrict_member_access": False,
}
MEMBER = {
    "url": "http://waldur/",
    "uuid": USER,
    "username": "ada",
    "full_name": "Ada",
    "role": "member",
    "expiration_time": None,
    "offering_user_username": "ada",
    "offering_user_state": "OK",
}
ACCOUNT = {
    "url": "http://waldur/",
    "uuid": str(uuid.UUID(int=10)),
    "username": "ada",
    "user_uuid": USER,
    "user_username": "ada",
    "state": "OK",
    "offering_uuid": OFFERING,
    "created": NOW,
    "modified": NOW,
}


@dataclass
class Waldur:
    """What it holds, and every request it got."""

    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    resource: dict[str, Any] = field(default_factory=lambda: {**ORDERED, "limits": {}})
    team: list[dict[str, Any]] = field(default_factory=lambda: [dict(MEMBER)])
    offering_users: list[dict[str, Any]] = field(default_factory=lambda: [dict(ACCOUNT)])
    usages: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)

    def order(self, kind: str, limits: dict[str, int]) -> str:
        """Place an order for the resource and return its id."""
        drawn = str(uuid.uuid4())
        self.resource["limits"] = self.resource["limits"] | limits
        self.orders[drawn] = {
            "uuid": drawn,
            "type": kind,
            "state": "pending-provider",
            "resource_name": "alloc",
            "marketplace_resource_uuid": RESOURCE,
            "offering_uuid": OFFERING,
            "project_uuid": PROJECT,
            "customer_uuid": CUSTOMER,
            "project_slug": "proj",
            "limits": limits,
            "attributes": {},
        }
        return drawn

    def answer(self, method: str, path: str, body: Any) -> Any:
        """Return the JSON of an answer: by the first word of the path, else that there is nothing."""
        kind, *rest = path.strip("/").split("/")[1:]
        found = getattr(self, f"_{kind.replace('-', '_')}", None)
        answer = found(rest, body or {}) if found is not None else None
        if answer is None:
            self.unknown.append((method, path))
            return [] if method == "GET" else {"status": "done", "detail": "done"}
        return answer

    def _users(self, rest: list[str], body: dict[str, Any]) -> Any:
        return {"uuid": PROVIDER, "username": "agent", "full_name": "The agent", "permissions": []}

    def _marketplace_provider_offerings(self, rest: list[str], body: dict[str, Any]) -> Any:
        if len(rest) > 1:
            return None
        policy = {"username_generation_policy": "waldur_username"}
        return {
            "uuid": OFFERING,
            "customer_uuid": CUSTOMER,
            "components": COMPONENTS,
            "partitions": [],
            "plugin_options": policy,
        }

    def _marketplace_service_providers(self, rest: list[str], body: dict[str, Any]) -> Any:
        return None if rest else [{"uuid": PROVIDER}]

    def _marketplace_orders(self, rest: list[str], body: dict[str, Any]) -> Any:
        if not rest:
            pending = ("pending-provider", "executing")
            return [order for order in self.orders.values() if order["state"] in pending]
        order = self.orders[str(uuid.UUID(rest[0]))]
        if len(rest) > 1:
            order["state"] = STATE_AFTER[rest[1]]
            order["error_message"] = body.get("error_message", "")
            return {"detail": "done"}
        return order

    def _marketplace_provider_resources(self, rest: list[str], body: dict[str, Any]) -> Any:
        match rest:
            case []:
                return [self.resource]
            case [_]:
                return self.resource
            case [_, "team"]:
                return self.team
            case [_, "set_backend_id"]:
                self.resource["backend_id"] = body["backend_id"]
        return None

    def _marketplace_offering_users(self, rest: list[str], body: dict[str, Any]) -> Any:
        return self.offering_users

    def _marketplace_component_usages(self, rest: list[str], body: dict[str, Any]) -> Any:
        if rest != ["set_usage"]:
            return None
        self.usages.append(body)
        return {}


STATE_AFTER = {
    "approve_by_provider": "executing",
    "set_state_done": "done",
    "set_state_erred": "erred",
}
COMPONENTS = [
    {"type": name, "name": name, "billing_type": kind, "measured_unit": unit, "uuid": str(uuid.uuid4())}
    for name, kind, unit in (("eur", "limit", "EUR"), ("cpu", "limit", "cores"), ("cpu_hours", "usage", "h"), ("kwh", "usage", "kWh"))
]  # fmt: skip


def serve(waldur: Waldur) -> ThreadingHTTPServer:
    """Answer on a free port of loopback until shut down."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(size)
            url = urlsplit(self.path)
            waldur.seen.append((self.command, self.path))
            answer = waldur.answer(self.command, url.path, json.loads(raw) if raw else None)
            page = parse_qs(url.query).get("page", ["1"])[0]
            if isinstance(answer, list) and page != "1":
                answer = []
            data = json.dumps(answer).encode()
            self.send_response(
                200 if self.command == "GET" else 201 if "usage" in url.path else 200
            )
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            if isinstance(answer, list):
                self.send_header("x-result-count", str(len(answer)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do  # noqa: N815 - its own words

        def log_message(self, *_words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
