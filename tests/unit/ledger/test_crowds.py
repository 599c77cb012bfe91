"""Users' allowances, folded from events: opened, settled, forgotten, bounded."""

from dataclasses import replace

import pytest

from moulin.domain.events import FactoryApplied, KeyCreated, KeyUpdated, ObjectChange, Payload
from moulin.domain.factory import ObjectKind, Project
from moulin.domain.gateway_events import (
    AllowanceAlerted,
    AllowanceReturned,
    GatewayEpochClosed,
    JournalRecorded,
)
from moulin.domain.limits import Allowance, Period, UserRule, is_users, period_of, user_parts
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.ledger import crowds
from moulin.ledger.allowances import Allowances
from moulin.ledger.crowds import Crowd
from tests.unit.ledger.test_allowances import DAY_NS, NOON_NS, folded, granted, key

ADA, GRACE = "key_user:key_1/ada#eur", "project_user:lab/grace#tokens"
DAILY = Allowance(amount_neur=1000, period=Period.DAY, alerts_ppm=(500_000,))


def limited_key() -> KeyCreated:
    return KeyCreated(key=key(allowance=Allowance(), per_user=DAILY))


def limited_project() -> FactoryApplied:
    rule = UserRule(is_counted=True, allowance=Allowance(tokens=500))
    project = Project(name="lab", organisation="uni", per_user=rule)
    change = ObjectChange(kind=ObjectKind.PROJECT, name="lab", value=project)
    return FactoryApplied(managed_by="f", changes=(change,))


def asked(request: str, user: str, amount_neur: int, tokens: int = 0) -> JournalRecorded:
    begin = JournalRecord(
        sequence=1, kind=JournalKind.BEGIN, request=request, at_ns=1, organisation="uni",
        project="lab", key="key_1", user=user,
    )  # fmt: skip
    end = replace(
        begin, kind=JournalKind.END, sequence=2, amount_neur=amount_neur, tokens_output=tokens
    )
    return JournalRecorded(gateway="g", gateway_epoch=1, through_sequence=2, records=(begin, end))


def returned(name: str, amount: int, *, is_closed: bool = False) -> AllowanceReturned:
    return AllowanceReturned(
        gateway="g", gateway_epoch=1, allowance=name, amount=amount, is_closed=is_closed
    )


def test_each_user_is_counted_under_what_key_and_project_declare() -> None:
    book = folded(limited_key(), limited_project(), asked("q1", "ada", 400, 7))
    assert book.users_of("lab", "key_1") == ("project_user:lab/#tokens", "key_user:key_1/#eur")
    ada, in_project = book.find(ADA), book.find("project_user:lab/ada#tokens")
    assert ada is not None
    assert in_project is not None
    assert (ada.used, in_project.used) == (400, 7)
    assert book.find("key_user:key_1/grace#eur") is None
    assert ada.alert_due() == 0
    folded(asked("q2", "ada", 200), book=book)
    assert (ada.used, ada.alert_due()) == (600, 500_000)
    told = AllowanceAlerted(allowance=ADA, threshold_ppm=500_000, used=600, limit=1000, start_ns=1)
    folded(told, book=book)
    assert ada.alert_due() == 0


def test_a_request_without_a_recorded_user_counts_for_none() -> None:
    book = folded(limited_key(), asked("q1", "", 400))
    assert book.crowds[next(iter(book.crowds))].spending == {}


def test_what_is_granted_and_closed_leaves_nothing_behind() -> None:
    book = folded(limited_key(), granted(ADA, 600))
    ada = book.find(ADA)
    assert ada is not None
    assert (ada.held, ada.available(NOON_NS)) == (600, 400)
    folded(returned(ADA, 600, is_closed=True), book=book)
    assert (book.find(ADA), book.escrow) == (None, {})
    book = folded(limited_key(), granted(ADA, 600), asked("q1", "ada", 250))
    folded(returned(ADA, 350, is_closed=True), book=book)
    found = book.find(ADA)
    assert found is not None
    assert (found.held, found.used, book.escrow) == (0, 250, {})


def test_an_epoch_that_closes_gives_back_what_it_held_of_users() -> None:
    book = folded(
        limited_key(), granted(ADA, 600), GatewayEpochClosed(gateway="g", gateway_epoch=1)
    )
    assert (book.find(ADA), book.escrow) == (None, {})


def test_debt_counts_in_the_next_period_and_nothing_else_does() -> None:
    book = folded(limited_key(), asked("q1", "ada", 1300), asked("q2", "grace", 900))
    crowd = next(iter(book.crowds.values()))
    tomorrow_ns = NOON_NS + DAY_NS
    ada = crowd.look(ADA, tomorrow_ns)
    grace = crowd.look("key_user:key_1/grace#eur", tomorrow_ns)
    assert ada is not None
    assert grace is not None
    assert (ada.available(tomorrow_ns), grace.available(tomorrow_ns)) == (700, 1000)


def test_a_limit_lifted_while_something_is_out_comes_back_to_nothing() -> None:
    lifted = KeyUpdated(key=key(allowance=Allowance()))
    book = folded(limited_key(), granted(ADA, 600), granted("key_user:key_1/bob#eur", 100))
    folded(asked("q1", "ada", 250), returned(ADA, 350), lifted, book=book)
    assert set(next(iter(book.crowds.values())).spending) == {"key_user:key_1/bob#eur"}
    folded(returned("key_user:key_1/bob#eur", 100), book=book)
    assert next(iter(book.crowds.values())).spending == {}
    raised = KeyUpdated(key=key(allowance=Allowance(), per_user=replace(DAILY, amount_neur=5)))
    book = folded(limited_key(), asked("q1", "ada", 4), raised)
    ada = book.find(ADA)
    assert ada is not None
    assert (ada.limit, ada.used) == (5, 4)


def test_what_was_granted_while_nothing_was_limited_counts_when_it_is_again() -> None:
    lifted = KeyUpdated(key=key(allowance=Allowance()))
    limited = KeyUpdated(key=key(allowance=Allowance(), per_user=DAILY))
    book = folded(limited_key(), lifted, granted(ADA, 900), limited)
    ada = book.find(ADA)
    assert ada is not None
    assert (ada.held, ada.available(NOON_NS)) == (900, 100)
    book = folded(limited_key(), granted(ADA, 300), lifted, granted(ADA, 600), limited)
    ada = book.find(ADA)
    assert ada is not None
    assert ada.held == 900


def test_a_project_that_goes_takes_its_users_limits_along() -> None:
    gone = FactoryApplied(
        managed_by="f", changes=(ObjectChange(kind=ObjectKind.PROJECT, name="lab", value=None),)
    )
    assert folded(limited_project(), asked("q1", "grace", 1, 1), gone).crowds == {}


def test_users_of_former_periods_are_forgotten_as_new_ones_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crowds, "SWEEP_MIN", 8)
    book = Allowances()
    payloads: list[Payload] = [limited_key()]
    folded(*payloads, book=book)
    crowd = next(iter(book.crowds.values()))
    crowd.sweep_at = 8
    for day in range(5):
        users = [asked(f"q{day}.{i}", f"user{day}.{i}", 10) for i in range(20)]
        folded(*users, at_ns=NOON_NS + day * DAY_NS, book=book)
        assert len(crowd.spending) <= 41
    assert {user_parts(name)[1].partition(".")[0] for name in crowd.spending} <= {
        "user3", "user4#eur", "user4",
    }  # fmt: skip


def test_a_crowd_is_full_until_a_period_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowds, "USERS_MAX", 4)
    crowd = Crowd(sweep_at=4)
    crowd.declare(DAILY, NOON_NS)
    names = [f"key_user:key_1/u{number}#eur" for number in range(8)]
    for name in names[:4]:
        spending = crowd.enter(name, NOON_NS)
        assert spending is not None
        spending.used = 1
    assert crowd.has_room(names[4], NOON_NS)  # nobody has looked whether former ones can go
    crowd.enter(names[4], NOON_NS)
    assert not crowd.has_room(names[5], NOON_NS)
    assert crowd.has_room(names[0], NOON_NS)
    assert crowd.full_until_ns == period_of(Period.DAY, NOON_NS)[1]
    tomorrow_ns = NOON_NS + DAY_NS
    assert crowd.has_room(names[5], tomorrow_ns)
    crowd.enter(names[5], tomorrow_ns)
    assert set(crowd.spending) == {names[5]}


def test_names_of_users_allowances_are_told_from_others() -> None:
    assert is_users(ADA)
    assert is_users(GRACE)
    assert not is_users("key:key_1#eur")
    assert not is_users("lab")
