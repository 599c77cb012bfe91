"""Whatever happens in whatever order: sums of holds agree, nothing is lost, nothing is negative."""

from hypothesis import given
from hypothesis import strategies as st

from moulin.domain.events import (
    ChargedUsage,
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
from moulin.ledger.balances import Balances, fold_balances, release

PROJECTS = [ProjectId("a"), ProjectId("b")]
BUDGET = 10**6
AMOUNTS = st.integers(0, 2000)
SPEC = WorkloadSpec(kind=WorkloadKind.JOB, name="a job")

projects = st.sampled_from(PROJECTS)
workloads = st.sampled_from(["w0", "w1", "w2"])
requests = st.sampled_from(["q0", "q1", "q2"])
epochs = st.integers(1, 2)


def owner(name: str) -> ProjectId:
    """Each workload and request has one project."""
    return PROJECTS[int(name[1:]) % 2]


def submitted(workload: str, amount: int) -> Payload:
    submission = Submission(
        id=WorkloadId(workload),
        organisation=OrganisationId("lab"),
        project=owner(workload),
        spec=SPEC,
        submitted_by="ada",
        submitted_at_ns=1,
    )
    return WorkloadSubmitted(submission=submission, reserved_neur=amount, policy_decision="")


def charged(hold: str, amount: int) -> Payload:
    item = ChargedUsage(
        usage="use",
        receipt="rcp",
        project=owner(hold),
        workload=hold,
        amount_neur=amount,
        leaf_index=0,
        is_from_grant=hold.startswith("q"),
    )
    return UsagesCharged(origin="o", items=(item,), tree_size=1, root="")


def recorded(epoch: int, kind: JournalKind, request: str, amount: int) -> Payload:
    record = JournalRecord(
        sequence=1,
        kind=kind,
        request=request,
        at_ns=1,
        project=owner(request),
        amount_neur=amount,
    )
    return JournalRecorded(gateway="g", gateway_epoch=epoch, through_sequence=1, records=(record,))


events = st.one_of(
    st.builds(submitted, workloads, AMOUNTS),
    st.builds(charged, workloads | requests, AMOUNTS),
    st.builds(recorded, epochs, st.sampled_from(JournalKind), requests, AMOUNTS),
    st.builds(
        lambda w: WorkloadFinished(workload=WorkloadId(w), state=WorkloadState.FAILED), workloads
    ),
    st.builds(
        lambda e, p, a: GrantIssued(gateway="g", gateway_epoch=e, project=p, amount_neur=a),
        epochs,
        projects,
        AMOUNTS,
    ),
    st.builds(
        lambda e, p, a: GrantReturned(gateway="g", gateway_epoch=e, project=p, amount_neur=a),
        epochs,
        projects,
        AMOUNTS,
    ),
    st.builds(lambda e: GatewayEpochClosed(gateway="g", gateway_epoch=e), epochs),
)


def folded(payloads: list[Payload]) -> Balances:
    balances = Balances()
    first = FactoryApplied(
        managed_by="file",
        changes=tuple(
            ObjectChange(
                kind=ObjectKind.PROJECT,
                name=name,
                value=Project(name=name, organisation="lab", budget_neur=BUDGET),
            )
            for name in PROJECTS
        ),
    )
    for sequence, payload in enumerate([first, *payloads], 1):
        fold_balances(
            balances,
            Event(sequence=sequence, epoch=1, at_ns=1, actor="test", payload=payload),
        )
    return balances


@given(st.lists(events, max_size=40))
def test_totals_are_the_sums_of_their_parts(payloads):
    balances = folded(payloads)
    for name in PROJECTS:
        money = balances.projects[name]
        holds = [
            held
            for workload, held in balances.reserved_by_workload.items()
            if balances.project_by_workload[workload] == name
        ]
        escrow = [held for key, held in balances.escrow.items() if key[2] == name]
        settled = [amount or 0 for project, amount in balances.requests.values() if project == name]
        assert money.reserved_neur == sum(holds)
        assert money.granted_neur == sum(escrow)
        assert money.settled_neur == sum(settled)
        assert min([0, *holds, *escrow, *settled]) == 0
        assert balances.available_neur(name) == BUDGET - money.spent_neur - money.held_neur


@given(st.lists(events, max_size=40))
def test_nothing_that_was_charged_is_ever_lost(payloads):
    balances = folded(payloads)
    items = [item for p in payloads if isinstance(p, UsagesCharged) for item in p.items]
    for name in PROJECTS:
        expected = sum(item.amount_neur for item in items if item.project == name)
        assert balances.projects[name].spent_neur == expected


@given(st.lists(events, max_size=40))
def test_when_everything_is_over_nothing_is_held(payloads):
    ends: list[Payload] = [
        WorkloadFinished(workload=WorkloadId(w), state=WorkloadState.FAILED)
        for w in ("w0", "w1", "w2")
    ]
    ends += [GatewayEpochClosed(gateway="g", gateway_epoch=epoch) for epoch in (1, 2)]
    ends += [charged(request, 0) for request in ("q0", "q1", "q2")]
    balances = folded([*payloads, *ends])
    for workload in ("w0", "w1", "w2"):
        release(balances, workload)
    assert all(money.held_neur == 0 for money in balances.projects.values())
    assert not balances.reserved_by_workload
    assert not balances.finished
    assert not balances.requests
