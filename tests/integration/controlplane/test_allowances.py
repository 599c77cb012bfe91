"""Allowances at the control plane: parts handed out, never beyond the limit; alerts told once."""

from dataclasses import replace
from typing import Any, cast

import pytest

from moulin.controlplane.allowances import tell_again
from moulin.controlplane.commands import ReadAllowances, SettleAlert, SyncGateway, UpdateKey
from moulin.domain.control import KeyChange
from moulin.domain.factory import Organisation
from moulin.domain.gateway_events import AlertSettled, AllowanceAlerted
from moulin.domain.limits import Allowance, LimitScope, Period
from moulin.domain.reasons import ReasonCode
from moulin.domain.snapshot import Grant, SyncRequest, Want
from moulin.ledger import crowds
from tests.integration.controlplane.bench import ADMIN, Bench, endpoint, factory
from tests.integration.controlplane.serving import GATEWAY, Gateway

EUROS = "key:key_k1#eur"
HOOK = "https://alerts.example.org/"


@pytest.fixture
def limited(mill: Bench) -> Bench:
    """A mill whose key k1 may spend 1000 n€ a day, and whose organisation has a webhook."""
    objects = [
        replace(each, webhook=HOOK) if isinstance(each, Organisation) else each
        for each in factory()
    ]
    mill.apply(*objects)
    mill.create_key("k1")
    allowance = Allowance(amount_neur=1000, period=Period.DAY, alerts_ppm=(500_000, 900_000))
    mill.tell(UpdateKey(principal=ADMIN, key="key_k1", change=KeyChange(allowance=allowance)))
    return mill


def wish(bench: Bench, gateway: str, amount: int, least: int) -> tuple[int, bool]:
    """Return what a gateway is given of the key's euros, and whether it is refused."""
    want = Want(project=EUROS, amount_neur=amount, least_neur=least)
    request = SyncRequest(gateway=gateway, epoch=100, records_epoch=100, wants=(want,))
    reply = bench.tell(SyncGateway(principal=GATEWAY, request=request))
    (grant,) = reply.grants
    return grant.amount_neur, grant.refusal is not None


def test_the_last_of_an_allowance_is_shared_in_whole_requests(limited: Bench) -> None:
    for gateway in ("one", "two"):
        wish(limited, gateway, 1, 1)
    assert wish(limited, "one", 5000, 100) == (400, False)
    assert wish(limited, "two", 5000, 100) == (200, False)
    given = 602
    while given < 1000:
        amount, is_refused = wish(limited, "two", 5000, 100)
        given += amount
        if is_refused:
            break
    assert given == 1000
    assert wish(limited, "one", 5000, 100) == (0, True)
    assert limited.plane.books.allowances.spending[EUROS].held == 1000


def test_a_refusal_says_the_numbers_and_when_it_renews(limited: Bench) -> None:
    request = SyncRequest(
        gateway="one",
        epoch=100,
        records_epoch=100,
        wants=(Want(project=EUROS, amount_neur=2000, least_neur=2000),),
    )
    reply = limited.tell(SyncGateway(principal=GATEWAY, request=request))
    refusal = reply.grants[0].refusal
    assert refusal.code is ReasonCode.ALLOWANCE_EXCEEDED
    assert refusal.parameters["limit"] == "0.000001 EUR"
    assert refusal.parameters["period"].startswith("until 20")


def test_an_alert_is_told_once_and_again_after_a_restart(limited: Bench) -> None:
    told: list[Any] = []
    limited.plane.ports = replace(limited.plane.ports, notify=told.append)
    workload = limited.submit(endpoint())
    limited.turns(2, 1.0)
    gate = Gateway(limited)
    gate.request("q1", workload.id, end=True)
    gate.records = [
        replace(record, key="key_k1", organisation="lab", project="atelier", amount_neur=600)
        for record in gate.records
    ]
    gate.sync()
    limited.turns(3, 1.0)
    (notice,) = told
    assert (notice.threshold_ppm, notice.url, notice.project) == (500_000, HOOK, "atelier")
    assert notice.allowance.used == 600
    assert len(limited.events(AllowanceAlerted)) == 1

    limited.reopen()
    limited.plane.ports = replace(limited.plane.ports, notify=told.append)
    tell_again(limited.plane)
    assert [each.id for each in told] == [notice.id, notice.id]
    settle = SettleAlert(alert=notice.id, is_delivered=True, attempts=2)
    limited.tell(settle)
    limited.tell(settle)
    assert len(limited.events(AlertSettled)) == 1
    tell_again(limited.plane)
    assert len(told) == 2


def test_an_alert_says_which_user_as_it_is_recorded(limited: Bench) -> None:
    told: list[Any] = []
    limited.plane.ports = replace(limited.plane.ports, notify=told.append)
    per_user = Allowance(amount_neur=1000, period=Period.DAY, alerts_ppm=(500_000,))
    limited.tell(UpdateKey(principal=ADMIN, key="key_k1", change=KeyChange(per_user=per_user)))
    workload = limited.submit(endpoint())
    limited.turns(2, 1.0)
    gate = Gateway(limited)
    gate.request("q1", workload.id, end=True)
    gate.records = [
        replace(
            record,
            key="key_k1",
            organisation="lab",
            project="atelier",
            amount_neur=300 if user == "usr_b" else 600,
            request=f"{record.request}.{user}",
            sequence=record.sequence + 2 * at,
            user=user,
        )
        for at, user in enumerate(("usr_a", "usr_b"))
        for record in gate.records
    ]
    gate.sync()
    limited.turns(3, 1.0)
    notices = [each for each in told if each.allowance.scope is LimitScope.KEY_USER]
    assert [each.allowance.name for each in notices] == ["key_k1/usr_a"]
    assert (notices[0].project, notices[0].url) == ("atelier", HOOK)
    page = limited.tell(ReadAllowances(project="atelier", users=("usr_b",)))
    assert [(view.name, view.used) for view in page.items] == [("key_k1/usr_b", 300)]
    everybody = limited.tell(ReadAllowances(project="atelier"))
    assert LimitScope.KEY_USER not in {view.scope for view in everybody.items}


def test_a_full_crowd_refuses_the_next_user_with_the_number(
    limited: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowds, "USERS_MAX", 2)
    per_user = Allowance(amount_neur=1000, period=Period.DAY)
    limited.tell(UpdateKey(principal=ADMIN, key="key_k1", change=KeyChange(per_user=per_user)))
    crowd = next(iter(limited.plane.books.allowances.crowds.values()))
    crowd.sweep_at = 2

    def ask(user: str) -> Grant:
        want = Want(project=f"key_user:key_k1/{user}#eur", amount_neur=10, least_neur=10)
        request = SyncRequest(gateway="one", epoch=100, records_epoch=100, wants=(want,))
        (grant,) = limited.tell(SyncGateway(principal=GATEWAY, request=request)).grants
        return cast("Grant", grant)

    assert [ask(user).amount_neur for user in ("a", "b", "c")] == [10, 10, 10]
    refused = ask("d")
    assert refused.amount_neur == 0
    assert refused.refusal is not None
    assert refused.refusal.code is ReasonCode.TOO_MANY_USERS
    assert ask("a").amount_neur == 10
