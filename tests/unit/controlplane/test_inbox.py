"""The door of the control plane: order, bounds and goodbyes."""

import time
from threading import Thread

import pytest

from moulin.controlplane.commands import ReadStatus, RevokeKey
from moulin.controlplane.inbox import WAITING_MAX, Inbox
from moulin.domain.errors import StoreUnavailable
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.principal import Principal, Role

WHO = Principal(
    key=KeyId("k"),
    name="ada",
    role=Role.ADMIN,
    organisation=OrganisationId("lab"),
    project=ProjectId("atelier"),
)


def numbered(number):
    return RevokeKey(principal=WHO, key=str(number))


def test_calls_are_taken_in_order_and_in_portions():
    inbox = Inbox()
    for number in range(5):
        inbox.call(numbered(number))
    taken = [[call.command for call in inbox.take(0.0, 2)] for _ in range(4)]
    assert taken == [[numbered(n) for n in portion] for portion in ((0, 1), (2, 3), (4,), ())]


def test_a_full_inbox_refuses_and_keeps_what_it_has():
    inbox = Inbox()
    for _ in range(WAITING_MAX):
        inbox.call(ReadStatus())
    with pytest.raises(StoreUnavailable, match=str(WAITING_MAX)):
        inbox.call(ReadStatus()).result(0)
    assert len(inbox.take(0.0, WAITING_MAX + 1)) == WAITING_MAX


def test_a_closed_inbox_answers_those_who_wait_and_those_who_come():
    inbox = Inbox()
    waiting = inbox.call(ReadStatus())
    given_up = inbox.call(ReadStatus())
    given_up.cancel()
    inbox.close()
    inbox.close()
    for future in (waiting, inbox.call(ReadStatus())):
        assert isinstance(future.exception(0), StoreUnavailable)
    assert given_up.cancelled()
    assert inbox.take(60.0, 10) == []


@pytest.mark.parametrize(("act", "calls"), [("call", 1), ("close", 0)])
def test_a_taker_that_waits_is_woken(act, calls):
    inbox = Inbox()
    taken: list[int] = []
    taker = Thread(target=lambda: taken.append(len(inbox.take(3600.0, 10))), daemon=True)
    taker.start()
    while not vars(inbox._ready)["_waiters"]:  # until it waits there is nobody to wake
        time.sleep(0.001)
    inbox.call(ReadStatus()) if act == "call" else inbox.close()
    taker.join(60.0)
    assert taken == [calls]
