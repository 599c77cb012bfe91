"""Each project's money as folded from the log: spent, held for workloads, held by gateways.

Available money is budget - spent - held; holds are escrow, so that what was promised to running
work or to a gateway is not promised twice. A workload's hold stays until everything the workload
used is charged: only metering knows when, so whoever folds both calls `release`. What is charged
beyond a hold is spent all the same, and may leave the project in debt. This module never prices and
never refuses; it forgets holds as they end, and never what was spent.
"""

from dataclasses import dataclass, field

from moulin.domain.errors import check
from moulin.domain.events import (
    Event,
    FactoryApplied,
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
from moulin.domain.lease_events import LeaseExtended
from moulin.domain.snapshot import JournalKind

GrantKey = tuple[str, int, str]


@dataclass(slots=True)
class Money:
    """One project's balance in n€; `budget_neur` -1 means no limit.

    `settled_neur` is what gateways have used of their escrow but no receipt has charged yet.
    """

    organisation: str = ""
    budget_neur: int = -1
    spent_neur: int = 0
    reserved_neur: int = 0
    granted_neur: int = 0
    settled_neur: int = 0

    @property
    def held_neur(self) -> int:
        """Money that is promised but not yet spent."""
        return self.reserved_neur + self.granted_neur + self.settled_neur


@dataclass(slots=True)
class Balances:
    """All projects' money, holds per workload, escrow per (gateway, epoch, project).

    `finished` are workloads whose hold is not released yet. `requests` maps a request that is not
    charged yet to its project and what it settled, None until its end is known. `used_up` are
    unfinished workloads that have spent all that was held.
    """

    projects: dict[str, Money] = field(default_factory=dict)
    reserved_by_workload: dict[str, int] = field(default_factory=dict)
    project_by_workload: dict[str, str] = field(default_factory=dict)
    finished: dict[str, None] = field(default_factory=dict)
    escrow: dict[GrantKey, int] = field(default_factory=dict)
    requests: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    used_up: dict[str, None] = field(default_factory=dict)

    def available_neur(self, project: str) -> int | None:
        """Return what the project may still promise; None when it has no budget limit.

        Negative when charges overran a promise: that is debt, and it is never forgotten.
        """
        money = self.projects.get(project)
        if money is None or money.budget_neur < 0:
            return None
        return money.budget_neur - money.spent_neur - money.held_neur


def fold_balances(balances: Balances, event: Event) -> None:
    """Apply one event in place; kinds without money change nothing."""
    payload = event.payload
    match payload:
        case FactoryApplied():
            _apply_projects(balances, payload)
        case WorkloadSubmitted():
            _reserve(balances, payload)
        case LeaseExtended():
            _extend(balances, payload)
        case WorkloadFinished():
            _finish(balances, payload.workload)
        case UsagesCharged():
            _charge(balances, payload)
        case GrantIssued():
            key = (payload.gateway, payload.gateway_epoch, payload.project)
            balances.escrow[key] = balances.escrow.get(key, 0) + payload.amount_neur
            _money(balances, payload.project).granted_neur += payload.amount_neur
        case GrantReturned():
            _shrink_escrow(
                balances,
                (payload.gateway, payload.gateway_epoch, payload.project),
                payload.amount_neur,
            )
        case JournalRecorded():
            _settle(balances, payload)
        case GatewayEpochClosed():
            _close(balances, payload)
        case _:
            pass


def release(balances: Balances, workload: str) -> bool:
    """Give back what is left of a workload's hold; return False when there is no hold any more."""
    project = balances.project_by_workload.pop(workload, None)
    if project is None:
        return False
    _money(balances, project).reserved_neur -= balances.reserved_by_workload.pop(workload)
    balances.finished.pop(workload, None)
    balances.used_up.pop(workload, None)
    return True


def _money(balances: Balances, project: str) -> Money:
    return balances.projects.setdefault(project, Money())


def _apply_projects(balances: Balances, applied: FactoryApplied) -> None:
    for change in applied.changes:
        if change.kind is not ObjectKind.PROJECT:
            continue
        if isinstance(change.value, Project):
            money = _money(balances, change.name)
            money.organisation = change.value.organisation
            money.budget_neur = change.value.budget_neur


def _reserve(balances: Balances, submitted: WorkloadSubmitted) -> None:
    submission = submitted.submission
    if submission.id in balances.project_by_workload:
        return
    balances.project_by_workload[submission.id] = submission.project
    balances.reserved_by_workload[submission.id] = submitted.reserved_neur
    _money(balances, submission.project).reserved_neur += submitted.reserved_neur


def _extend(balances: Balances, extended: LeaseExtended) -> None:
    project = balances.project_by_workload.get(extended.workload)
    if project is None or extended.workload in balances.finished:
        return
    balances.reserved_by_workload[extended.workload] += extended.added_neur
    _money(balances, project).reserved_neur += extended.added_neur
    balances.used_up.pop(extended.workload, None)


def _finish(balances: Balances, workload: str) -> None:
    balances.used_up.pop(workload, None)
    if workload in balances.project_by_workload:
        balances.finished[workload] = None


def _charge(balances: Balances, charged: UsagesCharged) -> None:
    for item in charged.items:
        money = _money(balances, item.project)
        money.spent_neur += item.amount_neur
        if item.is_from_grant:
            settled_neur = balances.requests.pop(item.workload, ("", None))[1] or 0
            money.settled_neur -= settled_neur
            check(money.settled_neur >= 0, "settled escrow is never negative")
            continue
        held = balances.reserved_by_workload.get(item.workload)
        if held is None:
            continue
        used = min(held, item.amount_neur)
        balances.reserved_by_workload[item.workload] = held - used
        money.reserved_neur -= used
        if item.amount_neur and used == held and item.workload not in balances.finished:
            balances.used_up[item.workload] = None


def _shrink_escrow(balances: Balances, key: GrantKey, amount_neur: int) -> int:
    """Take up to `amount_neur` out of an escrow and return what was taken."""
    held = balances.escrow.get(key, 0)
    taken = min(held, amount_neur)
    if not taken:
        return 0
    balances.escrow[key] = held - taken
    _money(balances, key[2]).granted_neur -= taken
    return taken


def _settle(balances: Balances, recorded: JournalRecorded) -> None:
    """Move what ended requests used from escrow to settled; an end counts once, after a begin."""
    for record in recorded.records:
        if record.kind is JournalKind.BEGIN:
            balances.requests.setdefault(record.request, (record.project, None))
            continue
        project, settled_neur = balances.requests.get(record.request, ("", 0))
        if settled_neur is not None:
            continue
        key = (recorded.gateway, recorded.gateway_epoch, project)
        _shrink_escrow(balances, key, record.amount_neur)
        _money(balances, project).settled_neur += record.amount_neur
        balances.requests[record.request] = (project, record.amount_neur)


def _close(balances: Balances, closed: GatewayEpochClosed) -> None:
    for key in sorted(balances.escrow):
        if key[0] == closed.gateway and key[1] == closed.gateway_epoch:
            _money(balances, key[2]).granted_neur -= balances.escrow.pop(key)
