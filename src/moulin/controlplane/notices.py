"""Which ends of workloads a webhook is still to be told, folded from the log.

A workload that wants its end told, in a project for which the operator declared a webhook, is told of
until the webhook took it or was given up. What a notice says is fixed with the end.
"""

from dataclasses import dataclass, field

from moulin.domain.events import Event, WorkloadFinished
from moulin.domain.gateway_events import AlertSettled
from moulin.domain.ids import WorkloadId
from moulin.domain.notices import WorkloadNotice
from moulin.scheduler import State, workload_view


@dataclass(slots=True)
class Notices:
    """Ends that no webhook has answered for, by the sequence of their event."""

    untold: dict[int, WorkloadNotice] = field(default_factory=dict)


def fold_notices(book: Notices, event: Event, schedule: State, *, has_webhook: bool) -> None:
    """Apply one event in place; `schedule` has already folded it."""
    match event.payload:
        case WorkloadFinished(workload=workload) if has_webhook:
            row = schedule.workloads.get(workload)
            # An end that changed nothing, as it came twice, is not told again.
            is_end = row is not None and row.is_final and row.sequence == event.sequence
            if row is not None and is_end and row.submission.spec.is_notified:
                book.untold[event.sequence] = _notice(schedule, workload, event)
        case AlertSettled(alert=alert):
            book.untold.pop(alert, None)
        case _:
            pass


def _notice(schedule: State, workload: WorkloadId, event: Event) -> WorkloadNotice:
    view = workload_view(schedule, workload)
    return WorkloadNotice(
        id=event.sequence,
        at_ns=event.at_ns,
        organisation=view.organisation,
        project=view.project,
        workload=view.id,
        name=view.name,
        kind=view.kind,
        state=view.state,
        reason=view.reasons[0] if view.reasons else None,
        submitted_at_ns=view.submitted_at_ns,
        started_at_ns=view.started_at_ns,
        ended_at_ns=view.ended_at_ns,
        counts=view.counts,
        labels=view.spec.labels,
    )
