"""Alerts reach a real HTTP server: signed, again until it answers, never anywhere else."""

import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from moulin.app.webhooks import Webhooks, signature
from moulin.controlplane.commands import SettleAlert
from moulin.domain.limits import (
    AllowanceNotice,
    AllowanceUnit,
    AllowanceView,
    LimitScope,
    Period,
)
from moulin.domain.notices import WorkloadNotice
from moulin.domain.reasons import Reason, ReasonCode
from moulin.identity import webhook_secret

PEPPER = bytes(range(32))


class Receiver:
    """A server that answers with the statuses it is given, then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.location = ""
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        handler = type("Handler", (_Handler,), {"receiver": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/alerts?to=ops"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.receiver.got.append((self.path, headers, body))
        self.send_response(self.receiver.statuses.pop(0) if self.receiver.statuses else 200)
        self.send_header("location", self.receiver.location)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture
def settled() -> list[SettleAlert]:
    return []


@pytest.fixture
def webhooks(settled: list[SettleAlert]) -> Iterator[Webhooks]:
    found = Webhooks(
        pepper=PEPPER,
        now_ns=time.time_ns,
        settle=settled.append,
        first_wait_s=0.01,
        attempts_max=3,
    )
    yield found
    found.close()


def notice(url: str, **changes: Any) -> AllowanceNotice:
    view = AllowanceView(
        scope=LimitScope.KEY,
        name="key_1",
        unit=AllowanceUnit.EUR,
        limit=10**10,
        used=8 * 10**9,
        held=0,
        period=Period.MONTH,
        start_ns=0,
    )
    fields: dict[str, Any] = {
        "id": 7, "at_ns": 10**18, "organisation": "uni", "project": "lab",
        "threshold_ppm": 800_000, "allowance": view, "url": url,
    }  # fmt: skip
    return AllowanceNotice(**{**fields, **changes})


def eventually(settled: list[SettleAlert], count: int) -> None:
    deadline_s = time.monotonic() + 20
    while len(settled) < count:
        assert time.monotonic() < deadline_s, "no alert was settled"
        time.sleep(0.01)


def test_an_alert_is_signed_and_settled(
    receiver: Receiver, webhooks: Webhooks, settled: list[SettleAlert]
) -> None:
    webhooks.offer(notice(receiver.url))
    eventually(settled, 1)
    ((path, headers, body),) = receiver.got
    assert path == "/alerts?to=ops"
    told = json.loads(body)
    assert (told["id"], told["project"], told["threshold_ppm"]) == (7, "lab", 800_000)
    assert receiver.url.encode() not in body
    at_s = int(headers["x-moulin-signature"].split(",")[0].removeprefix("t="))
    expected = signature(webhook_secret(PEPPER, receiver.url), at_s, body)
    assert hmac.compare_digest(headers["x-moulin-signature"], expected)
    assert settled == [SettleAlert(alert=7, is_delivered=True, attempts=1)]


def test_it_is_told_again_until_somebody_answers(
    receiver: Receiver, webhooks: Webhooks, settled: list[SettleAlert]
) -> None:
    receiver.statuses = [500, 503]
    webhooks.offer(notice(receiver.url))
    webhooks.offer(notice(receiver.url))
    eventually(settled, 1)
    assert settled == [SettleAlert(alert=7, is_delivered=True, attempts=3)]
    assert len(receiver.got) == 3
    assert {headers["x-moulin-delivery"] for _, headers, _ in receiver.got} == {"7"}


def test_no_redirect_is_followed_and_at_last_it_is_given_up(
    receiver: Receiver, webhooks: Webhooks, settled: list[SettleAlert]
) -> None:
    elsewhere = Receiver()
    try:
        receiver.statuses, receiver.location = [307, 302, 301], elsewhere.url
        webhooks.offer(notice(receiver.url))
        eventually(settled, 1)
        assert settled == [SettleAlert(alert=7, is_delivered=False, attempts=3)]
        assert elsewhere.got == []
    finally:
        elsewhere.close()


def test_offering_does_not_wait_for_who_does_not_answer(
    webhooks: Webhooks, settled: list[SettleAlert]
) -> None:
    webhooks.offer(notice("http://127.0.0.1:1/nobody"))
    eventually(settled, 1)
    assert not settled[0].is_delivered


def test_the_end_of_a_workload_is_told_like_an_alert(webhooks, receiver, settled):
    reason = Reason(code=ReasonCode.ARRAY_PART, parameters={"failed": "1"})
    ended = WorkloadNotice(
        id=9,
        at_ns=10**18,
        organisation="uni",
        project="lab",
        workload="job_1",
        name="sweep",
        kind="job",
        state="failed",
        reason=reason,
        ended_at_ns=10**18,
        counts={"failed": 1, "succeeded": 9},
        url=receiver.url,
    )
    webhooks.offer(ended)
    eventually(settled, 1)
    [(_, headers, body)] = receiver.got
    assert headers["x-moulin-event"] == "workload.finished"
    seconds = int(headers["x-moulin-signature"].split(",")[0].removeprefix("t="))
    secret = webhook_secret(PEPPER, receiver.url)
    assert headers["x-moulin-signature"] == signature(secret, seconds, body)
    told = json.loads(body)
    assert (told["workload"], told["state"], told["counts"]["failed"]) == ("job_1", "failed", 1)
    assert told["reason"]["code"] == "ArrayPart"
    assert "url" not in told
