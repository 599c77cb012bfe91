"""Projects' money folded from events, one promise at a time."""

import pytest

from moulin.domain.events import (
    ChargedUsage,
    CycleDecided,
    Event,
    FactoryApplied,
    ObjectChange,
    Payload,
    UsagesCharged,
    WorkloadFinished,
    WorkloadSubmitted,
)
from moulin.domain.factory import ObjectKind, Project
from moulin.domain.gateway_events import (
    GatewayEpochClosed,
    GrantIssued,
    GrantReturned,
    JournalRecorded,
)
from moulin.domain.ids import OrganisationId, ProjectId, WorkloadId
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.domain.workload import Submission, WorkloadKind, WorkloadSpec, WorkloadState
from moulin.ledger.balances import Balances, Money, fold_balances, release

ATELIER = ProjectId("atelier")


def folded(*payloads: Payload) -> Balances:
    balances = Balances()
    for sequence, payload in enumerate((budget(1000), *payloads), 1):
        event = Event(sequence=sequence, epoch=1, at_ns=sequence, actor="test", payload=payload)
        fold_balances(balances, event)
    return balances


def budget(amount_neur: int) -> FactoryApplied:
    project = Project(name=ATELIER, organisation="lab", budget_neur=amount_neur)
    change = ObjectChange(kind=ObjectKind.PROJECT, name=ATELIER, value=project)
    return FactoryApplied(managed_by="file", changes=(change,))


def submitted(workload: str, reserved_neur: int) -> WorkloadSubmitted:
    submission = Submission(
        id=WorkloadId(workload),
        organisation=OrganisationId("lab"),
        project=ATELIER,
        spec=WorkloadSpec(kind=WorkloadKind.JOB, name="a job"),
        submitted_by="ada",
        submitted_at_ns=1,
    )
    return WorkloadSubmitted(
        submission=submission, reserved_neur=reserved_neur, policy_decision="digest"
    )


def finished(workload: str) -> WorkloadFinished:
    return WorkloadFinished(workload=WorkloadId(workload), state=WorkloadState.SUCCEEDED)


def charged(hold: str, amount_neur: int, *, is_from_grant: bool = False) -> UsagesCharged:
    item = ChargedUsage(
        usage=f"use_{hold}",
        receipt=f"rcp_{hold}",
        project=ATELIER,
        workload=hold,
        amount_neur=amount_neur,
        leaf_index=0,
        is_from_grant=is_from_grant,
    )
    return UsagesCharged(origin="mill/hill", items=(item,), tree_size=1, root="")


def granted(amount_neur: int, epoch: int = 1) -> GrantIssued:
    return GrantIssued(
        gateway="gate", gateway_epoch=epoch, project=ATELIER, amount_neur=amount_neur
    )


def returned(amount_neur: int) -> GrantReturned:
    return GrantReturned(gateway="gate", gateway_epoch=1, project=ATELIER, amount_neur=amount_neur)


def journal(*records: tuple[JournalKind, str, int]) -> JournalRecorded:
    lines = tuple(
        JournalRecord(
            sequence=number,
            kind=kind,
            request=request,
            at_ns=number,
            project=ATELIER if kind is JournalKind.BEGIN else "",
            amount_neur=amount_neur,
        )
        for number, (kind, request, amount_neur) in enumerate(records, 1)
    )
    return JournalRecorded(
        gateway="gate", gateway_epoch=1, through_sequence=len(lines), records=lines
    )


BEGIN, END = JournalKind.BEGIN, JournalKind.END
CLOSED = GatewayEpochClosed(gateway="gate", gateway_epoch=1)


@pytest.mark.parametrize(
    ("payloads", "spent", "reserved", "escrow", "settled"),
    [
        ([], 0, 0, 0, 0),
        ([submitted("a", 300)], 0, 300, 0, 0),
        ([submitted("a", 300), submitted("a", 300)], 0, 300, 0, 0),
        ([submitted("a", 300), charged("a", 100)], 100, 200, 0, 0),
        ([submitted("a", 300), charged("a", 400)], 400, 0, 0, 0),
        ([submitted("a", 300), charged("a", 100), finished("a")], 100, 200, 0, 0),
        ([submitted("a", 300), finished("a"), charged("a", 100)], 100, 200, 0, 0),
        ([submitted("a", 300), finished("a"), charged("a", 400)], 400, 0, 0, 0),
        ([finished("a"), finished("a")], 0, 0, 0, 0),
        ([charged("never submitted", 50)], 50, 0, 0, 0),
        ([granted(200)], 0, 0, 200, 0),
        ([granted(200), granted(100, epoch=2)], 0, 0, 300, 0),
        ([granted(200), returned(50)], 0, 0, 150, 0),
        ([granted(200), returned(500)], 0, 0, 0, 0),
        ([returned(500)], 0, 0, 0, 0),
        ([granted(200), journal((BEGIN, "q", 80))], 0, 0, 200, 0),
        ([granted(200), journal((BEGIN, "q", 80), (END, "q", 30))], 0, 0, 170, 30),
        ([granted(200), journal((BEGIN, "q", 80), (END, "q", 30), (END, "q", 30))], 0, 0, 170, 30),
        ([granted(200), journal((END, "q", 30))], 0, 0, 200, 0),
        ([granted(200), journal((BEGIN, "q", 0), (END, "q", 0), (END, "q", 9))], 0, 0, 200, 0),
        ([granted(10), journal((BEGIN, "q", 80), (END, "q", 30))], 0, 0, 0, 30),
        ([granted(200), journal((BEGIN, "q", 80), (END, "q", 30)), CLOSED], 0, 0, 0, 30),
        (
            [
                granted(200),
                journal((BEGIN, "q", 80), (END, "q", 30)),
                charged("q", 30, is_from_grant=True),
            ],
            30,
            0,
            170,
            0,
        ),
        ([granted(200), CLOSED, returned(50)], 0, 0, 0, 0),
        ([CycleDecided(now_ns=1, input_sequence=0, plan_digest="")], 0, 0, 0, 0),
    ],
)
def test_money_after(payloads, spent, reserved, escrow, settled):
    money = folded(*payloads).projects[ATELIER]
    assert money == Money(
        organisation="lab",
        budget_neur=1000,
        spent_neur=spent,
        reserved_neur=reserved,
        granted_neur=escrow,
        settled_neur=settled,
    )
    assert folded(*payloads).available_neur(ATELIER) == 1000 - spent - reserved - escrow - settled


def test_a_charge_beyond_every_promise_is_debt():
    balances = folded(submitted("a", 300), charged("a", 1200))
    assert balances.available_neur(ATELIER) == -200


def test_no_limit_and_no_such_project_have_nothing_to_run_out_of():
    balances = folded(budget(-1), submitted("a", 10**18))
    assert balances.available_neur(ATELIER) is None
    assert balances.available_neur("nobody") is None


def test_a_raised_budget_keeps_what_was_spent():
    balances = folded(charged("a", 900), budget(2000))
    assert balances.available_neur(ATELIER) == 1100


def test_a_removed_project_keeps_its_money():
    removed = FactoryApplied(
        managed_by="file", changes=(ObjectChange(kind=ObjectKind.PROJECT, name=ATELIER),)
    )
    assert folded(charged("a", 900), removed).projects[ATELIER].spent_neur == 900


def test_what_is_left_of_a_hold_is_given_back_once():
    balances = folded(submitted("a", 300), submitted("b", 50), finished("a"), charged("a", 100))
    assert balances.available_neur(ATELIER) == 1000 - 100 - 200 - 50
    assert release(balances, "a")
    assert balances.available_neur(ATELIER) == 1000 - 100 - 50
    assert not release(balances, "a")
    assert not release(balances, "never submitted")
    assert balances.available_neur(ATELIER) == 1000 - 100 - 50


@pytest.mark.parametrize(
    ("payloads", "used_up"),
    [
        ([charged("a", 299)], []),
        ([charged("a", 300)], ["a"]),
        ([charged("a", 400)], ["a"]),
        ([charged("a", 300), finished("a")], []),
        ([finished("a"), charged("a", 300)], []),
    ],
)
def test_only_what_is_not_over_can_have_used_up_its_hold(payloads, used_up):
    assert list(folded(submitted("a", 300), *payloads).used_up) == used_up


def test_what_is_released_is_forgotten():
    balances = folded(
        submitted("a", 300),
        finished("a"),
        charged("a", 100),
        granted(200),
        journal((BEGIN, "q", 80), (END, "q", 30)),
        charged("q", 30, is_from_grant=True),
        CLOSED,
    )
    release(balances, "a")
    assert not balances.reserved_by_workload
    assert not balances.project_by_workload
    assert not balances.finished
    assert not balances.requests
    assert not balances.escrow
