"""Allowances: periods, debt, escrow, alerts and lines of keys, folded from events."""

from dataclasses import replace

import pytest

from moulin.domain.events import (
    ChargedUsage,
    Event,
    FactoryApplied,
    KeyCreated,
    KeyUpdated,
    ObjectChange,
    Payload,
    UsagesCharged,
)
from moulin.domain.factory import ObjectKind, Organisation, Project
from moulin.domain.gateway_events import (
    AlertSettled,
    AllowanceAlerted,
    AllowanceGranted,
    AllowanceReturned,
    GatewayEpochClosed,
    JournalRecorded,
)
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.limits import Allowance, Period, is_allowance, parts_of, period_of
from moulin.domain.principal import ApiKey, Role
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.ledger.allowances import Allowances, fold_allowances, view_of

DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2
EUR, TOKENS = "key:key_1#eur", "key:key_1#tokens"


def key(**changes: object) -> ApiKey:
    fields: dict[str, object] = {
        "id": KeyId("key_1"), "name": "k", "role": Role.INFERENCE, "digest": "d",
        "organisation": OrganisationId("uni"), "project": ProjectId("lab"),
        "allowance": Allowance(amount_neur=1000, tokens=500, period=Period.DAY,
                               alerts_ppm=(500_000, 1_000_000)),
    }  # fmt: skip
    return ApiKey(**{**fields, **changes})  # type: ignore[arg-type]


def folded(*payloads: Payload, at_ns: int = NOON_NS, book: Allowances | None = None) -> Allowances:
    book = book or Allowances()
    for number, payload in enumerate(payloads, 1):
        event = Event(sequence=number, epoch=1, at_ns=at_ns, actor="t", payload=payload)
        fold_allowances(book, event)
    return book


def granted(name: str, amount: int) -> AllowanceGranted:
    return AllowanceGranted(gateway="g", gateway_epoch=1, allowance=name, amount=amount)


def ended(request: str, amount_neur: int, tokens: int, key_id: str = "key_1") -> JournalRecorded:
    begin = JournalRecord(
        sequence=1, kind=JournalKind.BEGIN, request=request, at_ns=1, organisation="uni",
        project="lab", key=key_id,
    )  # fmt: skip
    end = replace(
        begin, kind=JournalKind.END, sequence=2, amount_neur=amount_neur, tokens_output=tokens
    )
    return JournalRecorded(
        gateway="g", gateway_epoch=1, through_sequence=2, records=(begin, end, end)
    )


def test_what_is_used_and_held_is_not_available() -> None:
    book = folded(KeyCreated(key=key()), granted(EUR, 600), ended("q1", 250, 40))
    euros = book.spending[EUR]
    assert (euros.used, euros.held, euros.available(NOON_NS)) == (250, 350, 400)
    assert book.spending[TOKENS].used == 40
    back = AllowanceReturned(gateway="g", gateway_epoch=1, allowance=EUR, amount=350)
    assert folded(back, book=book).spending[EUR].available(NOON_NS) == 750


def test_an_epoch_that_closes_gives_back_what_it_held() -> None:
    book = folded(
        KeyCreated(key=key()), granted(EUR, 600), GatewayEpochClosed(gateway="g", gateway_epoch=1)
    )
    assert book.spending[EUR].held == 0
    assert book.escrow == {}


def test_a_new_period_forgets_what_was_used_but_not_debt() -> None:
    book = folded(KeyCreated(key=key()), ended("q1", 1300, 0))
    euros = book.spending[EUR]
    assert euros.available(NOON_NS) == -300
    assert euros.available(NOON_NS + DAY_NS) == 700
    folded(ended("q2", 100, 0), at_ns=NOON_NS + DAY_NS, book=book)
    assert euros.used == 400
    assert view_of(EUR, euros, NOON_NS + DAY_NS).used == 400


def test_a_charge_that_differs_is_what_counts() -> None:
    charged = UsagesCharged(
        origin="o", tree_size=1, root="",
        items=(ChargedUsage(
            usage="use_q1", receipt="r", project=ProjectId("lab"), workload="q1", amount_neur=270,
            leaf_index=0, is_from_grant=True,
        ),),
    )  # fmt: skip
    book = folded(KeyCreated(key=key()), ended("q1", 250, 1), charged, charged)
    assert book.spending[EUR].used == 270
    assert book.settled == {}


def test_alerts_are_due_once_in_a_period() -> None:
    book = folded(KeyCreated(key=key()), ended("q1", 600, 0))
    euros = book.spending[EUR]
    assert euros.alert_due() == 500_000
    told = AllowanceAlerted(
        allowance=EUR, threshold_ppm=500_000, used=600, limit=1000, start_ns=0, has_webhook=True
    )
    folded(told, book=book)
    assert euros.alert_due() == 0
    assert list(book.untold) == [1]
    folded(ended("q2", 400, 0), AlertSettled(alert=1, is_delivered=True, attempts=1), book=book)
    assert euros.alert_due() == 1_000_000
    assert book.untold == {}


def test_a_rotated_key_uses_its_lines_allowance_and_only_the_newest_changes_it() -> None:
    first = key()
    second = key(id=KeyId("key_2"), origin="key_1", digest="e")
    book = folded(
        KeyCreated(key=first),
        KeyCreated(key=second),
        ended("q1", 100, 1),
        ended("q2", 100, 1, key_id="key_2"),
        KeyUpdated(key=replace(second, allowance=Allowance(amount_neur=5000))),
        KeyUpdated(key=replace(first, expires_at_ns=NOON_NS)),
    )
    assert book.spending[EUR].used == 200
    assert book.spending[EUR].limit == 5000
    assert TOKENS not in book.spending


def test_projects_and_organisations_bind_their_keys() -> None:
    applied = FactoryApplied(
        managed_by="f",
        changes=(
            ObjectChange(
                kind=ObjectKind.ORGANISATION,
                name="uni",
                value=Organisation(name="uni", allowance=Allowance(amount_neur=9)),
            ),
            ObjectChange(
                kind=ObjectKind.PROJECT,
                name="lab",
                value=Project(name="lab", organisation="uni", allowance=Allowance(tokens=7)),
            ),
        ),
    )
    book = folded(KeyCreated(key=key()), applied)
    names = ("organisation:uni#eur", "project:lab#tokens", EUR, TOKENS)
    assert book.names_of("uni", "lab", "key_1") == names
    removed = FactoryApplied(
        managed_by="f", changes=(ObjectChange(kind=ObjectKind.PROJECT, name="lab"),)
    )
    assert "project:lab#tokens" not in folded(removed, book=book).spending


def test_a_limit_lifted_and_set_again_knows_what_is_held() -> None:
    book = folded(KeyCreated(key=key()), granted(EUR, 600))
    folded(KeyUpdated(key=key(allowance=Allowance())), KeyUpdated(key=key()), book=book)
    assert book.spending[EUR].held == 600


@pytest.mark.parametrize(
    ("period", "start_day", "end_day"),
    [
        # 4 October 2024, a Friday, is day 20,000.
        (Period.DAY, 20_000, 20_001),
        (Period.WEEK, 19_996, 20_003),
        (Period.MONTH, 19_997, 20_028),
    ],
)
def test_periods_turn_at_midnight_utc(period: Period, start_day: int, end_day: int) -> None:
    assert period_of(period, NOON_NS) == (start_day * DAY_NS, end_day * DAY_NS)


def test_names_of_allowances_are_no_names_of_projects() -> None:
    assert is_allowance(EUR)
    assert not is_allowance("lab")
    assert parts_of(TOKENS)[1] == "key_1"
