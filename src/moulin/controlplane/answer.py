"""Each command's way into the draft, and each caller's answer after the commit.

One table maps a command's type to its handler; a handler returns a function that makes the answer
from the committed books, or raises the error its caller gets. Handlers never commit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from moulin.controlplane.allowances import read_allowances, settle_alert
from moulin.controlplane.batch import (
    adjust_workload,
    read_elements,
    stop_elements,
    stop_workloads,
)
from moulin.controlplane.commands import (
    AcceptLicence,
    AdjustWorkload,
    Answer,
    ApplyFactory,
    CancelBatch,
    CheckNode,
    CloseSession,
    CreateKey,
    DeleteObject,
    DeleteSecret,
    EndBatch,
    ExplainWorkload,
    Explanation,
    ExtendLease,
    JudgeNode,
    OpenBatch,
    OpenSession,
    OrderLease,
    ReadAllowances,
    ReadElements,
    ReadOffers,
    ReadStatus,
    RevokeKey,
    RolloutEndpoint,
    RotateKey,
    ScaleEndpoint,
    SetSecret,
    SettleAlert,
    StopElements,
    StopWorkload,
    StopWorkloads,
    StoreObject,
    SubmitWorkload,
    SyncGateway,
    TryWorkload,
    UpdateKey,
)
from moulin.controlplane.declare import apply_factory
from moulin.controlplane.draft import Draft
from moulin.controlplane.endpoints import rollout_endpoint, scale_endpoint
from moulin.controlplane.health import check_node, judge_node
from moulin.controlplane.inbox import Call
from moulin.controlplane.keys import rotate_key, update_key
from moulin.controlplane.leases import extend_lease, order_lease, read_offers
from moulin.controlplane.objects import (
    cancel_batch,
    delete_object,
    end_batch,
    open_batch,
    store_object,
)
from moulin.controlplane.plane import Plane
from moulin.controlplane.rows import view_of
from moulin.controlplane.schedule import present_policy
from moulin.controlplane.secrets import delete_secret, set_secret
from moulin.controlplane.sessions import close_session, open_session
from moulin.controlplane.standing import standings_of, with_standings
from moulin.controlplane.status import read_status
from moulin.controlplane.submit import submit_workload, try_workload
from moulin.controlplane.sync import sync_gateway
from moulin.domain.errors import InternalError, MoulinError, NotFound, StaleGeneration
from moulin.domain.events import (
    KeyCreated,
    KeyRevoked,
    LicenceAccepted,
    WorkloadStopRequested,
)
from moulin.domain.ids import WorkloadId
from moulin.domain.principal import ApiKey
from moulin.domain.views import WorkloadView
from moulin.domain.workload import FINAL_WORKLOAD_STATES
from moulin.scheduler import explain

Finish = Callable[[], Answer]
Handler = Callable[[Plane, Draft, Any], Finish]
REPLICAS_MAX: Final = 1000


@dataclass(slots=True)
class Answered:
    """Calls of one cycle with what each will be answered once the draft is durable."""

    calls: Sequence[Call]
    ready: list[tuple[Call, Finish]] = field(default_factory=list)

    def fail(self, error: MoulinError) -> None:
        """Tell every caller who has no answer yet what became of the cycle."""
        for call in self.calls:
            if not call.future.done():
                call.future.set_exception(error)
        self.ready.clear()


def answer_calls(plane: Plane, draft: Draft, answered: Answered) -> None:
    """Turn each command into events of the draft; a refusal waits for the commit like an answer."""
    for call in answered.calls:
        if not call.future.set_running_or_notify_cancel():
            continue
        try:
            finish = HANDLERS[type(call.command)](plane, draft, call.command)
        except MoulinError as error:
            _refuse_after_commit(answered, call, error)
        else:
            answered.ready.append((call, finish))


def release_answers(plane: Plane, answered: Answered) -> None:
    """Answer every caller from the committed books."""
    try:
        for call, finish in answered.ready:
            try:
                call.future.set_result(finish())
            except MoulinError as error:
                call.future.set_exception(error)
    finally:
        answered.fail(stopped_by_a_bug())


def stopped_by_a_bug() -> InternalError:
    """Return what callers are told when the control plane itself failed."""
    return InternalError(
        "carry out a command: a fault inside Moulin stopped this cycle",
        hint="repeat it with the same Idempotency-Key; the operator's log says more",
    )


def _refuse_after_commit(answered: Answered, call: Call, error: MoulinError) -> None:
    """A refusal may have drafted its own event, so it too is told only when that is durable."""

    def finish() -> Answer:
        raise error

    answered.ready.append((call, finish))


def _stop(plane: Plane, draft: Draft, command: StopWorkload) -> Finish:
    row = draft.books.schedule.workloads.get(command.workload)
    if row is None:
        ended = _ended(plane, command.workload, "stop")
        return lambda: ended
    if row.state not in FINAL_WORKLOAD_STATES and not row.stop_requested_by:
        draft.append(
            WorkloadStopRequested(workload=command.workload, by=command.principal.name),
            actor=command.principal.key,
            project=row.submission.project,
        )
    return lambda: view_of(draft.books, command.workload)


def _explain(plane: Plane, draft: Draft, command: ExplainWorkload) -> Finish:
    if command.workload not in draft.books.schedule.workloads:
        ended = _ended(plane, command.workload, "explain")
        return lambda: Explanation(workload=ended, reasons=ended.reasons)

    def finish() -> Explanation:
        schedule = draft.books.schedule
        standings = standings_of(plane, schedule, command.workload)
        policy = present_policy(draft, plane.policy)
        return Explanation(
            workload=with_standings(view_of(draft.books, command.workload), standings),
            reasons=explain(schedule, command.workload, draft.now_ns, policy, standings),
        )

    return finish


def _ended(plane: Plane, workload: WorkloadId, doing: str) -> WorkloadView:
    """Return a workload that ended so long ago that only the store has it."""
    found = plane.ports.store.workload(workload)
    if found is None:
        raise NotFound(f"{doing} {workload}: there is no such workload")
    if found.state not in FINAL_WORKLOAD_STATES:
        raise StaleGeneration(
            f"{doing} {workload}: another control plane leads, and only that one knows it",
            hint="repeat the request",
        )
    return found


def _create_key(plane: Plane, draft: Draft, command: CreateKey) -> Finish:
    if command.key.project and draft.books.project(command.key.project) is None:
        raise NotFound(f"create a key for {command.key.project}: there is no such project")
    draft.append(
        KeyCreated(key=command.key), actor=command.principal.key, project=command.key.project
    )
    return lambda: command.key


def _revoke_key(plane: Plane, draft: Draft, command: RevokeKey) -> Finish:
    found = draft.books.keyring.by_id.get(command.key)
    if found is None:
        raise NotFound(f"revoke {command.key}: there is no such key")
    if found.revoked_at_ns == 0:
        draft.append(
            KeyRevoked(key=command.key), actor=command.principal.key, project=found.project
        )

    def finish() -> ApiKey:
        return draft.books.keyring.by_id[command.key]

    return finish


def _accept_licence(plane: Plane, draft: Draft, command: AcceptLicence) -> Finish:
    project = draft.books.project(command.project)
    if project is None:
        raise NotFound(f"accept {command.licence} for {command.project}: there is no such project")
    key = (project.organisation, command.licence)
    if key not in draft.books.licences:
        draft.append(
            LicenceAccepted(
                licence=command.licence, model=command.model, by=command.principal.name
            ),
            actor=command.principal.key,
            project=command.project,
        )
    return lambda: draft.books.licences[key]


def _status(plane: Plane, draft: Draft, command: ReadStatus) -> Finish:
    return lambda: read_status(plane, draft.now_ns)


HANDLERS: Final[Mapping[type, Handler]] = {
    SubmitWorkload: submit_workload,
    TryWorkload: try_workload,
    StopWorkload: _stop,
    StopWorkloads: stop_workloads,
    StopElements: stop_elements,
    AdjustWorkload: adjust_workload,
    ReadElements: read_elements,
    ReadOffers: read_offers,
    OrderLease: order_lease,
    ExtendLease: extend_lease,
    JudgeNode: judge_node,
    CheckNode: check_node,
    ScaleEndpoint: scale_endpoint,
    RolloutEndpoint: rollout_endpoint,
    ExplainWorkload: _explain,
    ApplyFactory: apply_factory,
    CreateKey: _create_key,
    RevokeKey: _revoke_key,
    UpdateKey: update_key,
    RotateKey: rotate_key,
    ReadAllowances: read_allowances,
    SettleAlert: settle_alert,
    AcceptLicence: _accept_licence,
    SyncGateway: sync_gateway,
    StoreObject: store_object,
    DeleteObject: delete_object,
    OpenBatch: open_batch,
    CancelBatch: cancel_batch,
    EndBatch: end_batch,
    SetSecret: set_secret,
    DeleteSecret: delete_secret,
    OpenSession: open_session,
    CloseSession: close_session,
    ReadStatus: _status,
}
