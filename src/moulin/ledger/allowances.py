"""What was used of each allowance in its period, and what gateways hold of it, folded from the log.

    available = limit - used - held        nothing is handed out beyond it

What is used beyond a limit from any cause is debt: it stays used in the next period. A period turns
at the first event after its end; what a gateway still holds then counts against the new period.
This module never prices, refuses or alerts; it says what may be handed out and what is to be told.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from moulin.domain.events import Event, FactoryApplied, KeyCreated, KeyUpdated, UsagesCharged
from moulin.domain.factory import ObjectKind, Organisation, Project
from moulin.domain.gateway_events import (
    AlertSettled,
    AllowanceAlerted,
    AllowanceGranted,
    AllowanceReturned,
    GatewayEpochClosed,
    JournalRecorded,
)
from moulin.domain.limits import (
    Allowance,
    AllowanceUnit,
    AllowanceView,
    LimitScope,
    allowance_name,
    every_users,
    is_users,
    parts_of,
    period_of,
    user_allowance,
    user_parts,
)
from moulin.domain.snapshot import JournalKind, JournalRecord
from moulin.ledger.crowds import Crowd
from moulin.ledger.spending import Spending

__all__ = ["Allowances", "Settled", "Spending", "fold_allowances", "view_of"]

EscrowKey = tuple[str, int, str]


@dataclass(slots=True)
class Settled:
    """What an ended request used of which allowances, until its charge is known exactly."""

    names: tuple[str, ...]
    amount_neur: int


@dataclass(slots=True)
class Allowances:
    """Every allowance by name, escrow per (gateway, epoch, name), requests not charged yet.

    `crowds` are the allowances of users, by the scope and the owner that declared them.
    `lines` maps a key to the first of its line, `newest` that one to the last; `begun` a request to the allowances it may use.
    `touched` are allowances used since somebody last looked for alerts; `untold` are alerts whose
    webhook has not answered, by their event.
    """

    spending: dict[str, Spending] = field(default_factory=dict)
    crowds: dict[tuple[LimitScope, str], Crowd] = field(default_factory=dict)
    escrow: dict[EscrowKey, int] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    newest: dict[str, str] = field(default_factory=dict)
    begun: dict[str, tuple[str, ...]] = field(default_factory=dict)
    settled: dict[str, Settled] = field(default_factory=dict)
    touched: dict[str, None] = field(default_factory=dict)
    untold: dict[int, AllowanceAlerted] = field(default_factory=dict)

    def names_of(self, organisation: str, project: str, key: str) -> tuple[str, ...]:
        """Return the allowances that bind a request of this key, widest first."""
        return tuple(self._names_of(organisation, project, key))

    def users_of(self, project: str, key: str) -> tuple[str, ...]:
        """Return the allowances, without the user, that bind each user of this key."""
        if not self.crowds:
            return ()
        owners = (
            (LimitScope.PROJECT_USER, project),
            (LimitScope.KEY_USER, self.lines.get(key, key)),
        )
        return tuple(
            every_users(scope, owner, unit)
            for scope, owner in owners
            if (scope, owner) in self.crowds
            for unit in self.crowds[(scope, owner)].units()
        )

    def crowd_of(self, name: str) -> Crowd | None:
        """Return the crowd that a user's allowance belongs to; None when nobody declares it."""
        scope, owner, _ = parts_of(name)
        return self.crowds.get((scope, user_parts(owner)[0]))

    def find(self, name: str) -> Spending | None:
        """Return an allowance of anybody; a user's only where something counts."""
        if is_users(name):
            crowd = self.crowd_of(name)
            return crowd.spending.get(name) if crowd is not None else None
        return self.spending.get(name)

    def _names_of(self, organisation: str, project: str, key: str) -> Iterator[str]:
        line = self.lines.get(key, key)
        owners = (
            (LimitScope.ORGANISATION, organisation),
            (LimitScope.PROJECT, project),
            (LimitScope.KEY, line),
        )
        for scope, owner in owners:
            for unit in AllowanceUnit:
                name = allowance_name(scope, owner, unit)
                if name in self.spending:
                    yield name


def view_of(name: str, spending: Spending, now_ns: int) -> AllowanceView:
    """Return how an allowance stands at `now_ns`."""
    scope, owner, unit = parts_of(name)
    start_ns, end_ns = period_of(spending.period, now_ns)
    return AllowanceView(
        scope=scope,
        name=owner,
        unit=unit,
        limit=spending.limit,
        used=spending.used_at(now_ns),
        held=spending.held,
        period=spending.period,
        start_ns=start_ns,
        resets_at_ns=end_ns,
        alerts_ppm=spending.alerts_ppm,
    )


def fold_allowances(allowances: Allowances, event: Event) -> None:
    """Apply one event in place; kinds without allowances change nothing."""
    match event.payload:
        case KeyCreated(key=key):
            allowances.lines[key.id] = key.line
            allowances.newest[key.line] = key.id
            _declare(allowances, LimitScope.KEY, key.line, key.allowance, event.at_ns)
            _declare_users(allowances, LimitScope.KEY_USER, key.line, key.per_user, event.at_ns)
        case KeyUpdated(key=key):
            # What a key that was replaced still says of the line's limits is of the past.
            if allowances.newest.get(key.line) == key.id:
                _declare(allowances, LimitScope.KEY, key.line, key.allowance, event.at_ns)
                _declare_users(allowances, LimitScope.KEY_USER, key.line, key.per_user, event.at_ns)
        case FactoryApplied() as applied:
            _apply(allowances, applied, event.at_ns)
        case JournalRecorded() as recorded:
            _record(allowances, recorded, event.at_ns)
        case UsagesCharged() as charged:
            _correct(allowances, charged)
        case _:
            _fold_escrow(allowances, event)


def _fold_escrow(allowances: Allowances, event: Event) -> None:
    match event.payload:
        case AllowanceGranted() as granted:
            crowd = allowances.crowd_of(granted.allowance)
            if crowd is not None:
                crowd.enter(granted.allowance, event.at_ns)
            _hold(allowances, granted, granted.amount)
        case AllowanceReturned() as returned:
            _hold(allowances, returned, -returned.amount)
            if returned.is_closed:
                key = (returned.gateway, returned.gateway_epoch, returned.allowance)
                allowances.escrow.pop(key, None)
        case GatewayEpochClosed() as closed:
            _close(allowances, closed)
        case AllowanceAlerted() as alerted:
            spending = allowances.find(alerted.allowance)
            if spending is not None:
                spending.alerted_ppm = alerted.threshold_ppm
            if alerted.has_webhook:
                allowances.untold[event.sequence] = alerted
        case AlertSettled() as told:
            allowances.untold.pop(told.alert, None)
        case _:
            pass


def _apply(allowances: Allowances, applied: FactoryApplied, at_ns: int) -> None:
    scopes = {
        ObjectKind.ORGANISATION: LimitScope.ORGANISATION,
        ObjectKind.PROJECT: LimitScope.PROJECT,
    }
    for change in applied.changes:
        scope, value = scopes.get(change.kind), change.value
        if scope is not None:
            allowance = value.allowance if isinstance(value, Organisation | Project) else None
            _declare(allowances, scope, change.name, allowance or Allowance(), at_ns)
        if change.kind is ObjectKind.PROJECT:
            wanted = value.per_user.allowance if isinstance(value, Project) else Allowance()
            _declare_users(allowances, LimitScope.PROJECT_USER, change.name, wanted, at_ns)


def _declare(
    allowances: Allowances, scope: LimitScope, owner: str, wanted: Allowance, at_ns: int
) -> None:
    """Set an owner's limits; what was used stays, and another period starts with it."""
    limits = dict(wanted.limits())
    for unit in AllowanceUnit:
        name = allowance_name(scope, owner, unit)
        known = allowances.spending.get(name)
        if unit not in limits:
            # Escrow of it may be out: it comes back to nothing.
            allowances.spending.pop(name, None)
            continue
        spending = known or Spending(limit=0, period=wanted.period, held=_held(allowances, name))
        spending.limit, spending.alerts_ppm = limits[unit], wanted.alerts_ppm
        if spending.period is not wanted.period:
            spending.period, spending.end_ns = wanted.period, 0
        spending.turn(at_ns)
        allowances.spending[name] = spending


def _declare_users(
    allowances: Allowances, scope: LimitScope, owner: str, wanted: Allowance, at_ns: int
) -> None:
    """Set what each user of an owner may use; what gateways hold from before counts from here on."""
    if not wanted.is_set and (scope, owner) not in allowances.crowds:
        return
    crowd = allowances.crowds.get((scope, owner)) or Crowd()
    crowd.declare(wanted, at_ns)
    allowances.crowds[(scope, owner)] = crowd
    held: Counter[str] = Counter()
    for (_, _, name), amount in allowances.escrow.items():
        if amount and allowances.crowd_of(name) is crowd:
            held[name] += amount
    for name, amount in held.items():
        spending = crowd.enter(name, at_ns)
        if spending is not None:
            spending.held = amount
    if crowd.is_empty:
        del allowances.crowds[(scope, owner)]


def _held(allowances: Allowances, name: str) -> int:
    return sum(held for key, held in allowances.escrow.items() if key[2] == name)


def _hold(
    allowances: Allowances, escrow: AllowanceGranted | AllowanceReturned, change: int
) -> None:
    key = (escrow.gateway, escrow.gateway_epoch, escrow.allowance)
    before = allowances.escrow.get(key, 0)
    after = max(0, before + change)
    allowances.escrow[key] = after
    _change_held(allowances, escrow.allowance, after - before)


def _change_held(allowances: Allowances, name: str, change: int) -> None:
    if is_users(name):
        crowd = allowances.crowd_of(name)
        if crowd is not None:
            crowd.hold(name, change)
    elif name in allowances.spending:
        allowances.spending[name].held += change


def _record(allowances: Allowances, recorded: JournalRecorded, at_ns: int) -> None:
    """Count what ended requests used; an end counts once, after its begin."""
    for record in recorded.records:
        if record.kind is JournalKind.BEGIN:
            names = allowances.names_of(record.organisation, record.project, record.key)
            if record.user:
                users = allowances.users_of(record.project, record.key)
                names += tuple(user_allowance(name, record.user) for name in users)
            if names:
                allowances.begun[record.request] = names
            continue
        names = allowances.begun.pop(record.request, ())
        if names:
            _settle(allowances, recorded, record, names, at_ns)


def _settle(
    allowances: Allowances,
    recorded: JournalRecorded,
    record: JournalRecord,
    names: tuple[str, ...],
    at_ns: int,
) -> None:
    in_euros = []
    for name in names:
        is_euros = parts_of(name)[2] is AllowanceUnit.EUR
        amount = record.amount_neur if is_euros else record.tokens_input + record.tokens_output
        key = (recorded.gateway, recorded.gateway_epoch, name)
        taken = min(amount, allowances.escrow.get(key, 0))
        allowances.escrow[key] = allowances.escrow.get(key, 0) - taken
        spending = _used_by(allowances, name, amount, at_ns)
        if spending is None:
            continue
        spending.turn(at_ns)
        spending.used += amount
        _change_held(allowances, name, -taken)
        allowances.touched[name] = None
        if is_euros:
            in_euros.append(name)
    if in_euros:
        allowances.settled[record.request] = Settled(tuple(in_euros), record.amount_neur)


def _used_by(allowances: Allowances, name: str, amount: int, at_ns: int) -> Spending | None:
    """Return what an ended request counts against; a user who used nothing is not remembered."""
    crowd = allowances.crowd_of(name) if is_users(name) else None
    if crowd is not None and amount:
        crowd.enter(name, at_ns)
    return allowances.find(name)


def _correct(allowances: Allowances, charged: UsagesCharged) -> None:
    """Count what was charged instead of what the gateway expected it to be."""
    for item in charged.items:
        settled = allowances.settled.pop(item.workload, None) if item.is_from_grant else None
        if settled is None or settled.amount_neur == item.amount_neur:
            continue
        for name in settled.names:
            spending = allowances.find(name)
            if spending is not None:
                spending.used = max(0, spending.used + item.amount_neur - settled.amount_neur)
                allowances.touched[name] = None


def _close(allowances: Allowances, closed: GatewayEpochClosed) -> None:
    gone = [key for key in allowances.escrow if key[:2] == (closed.gateway, closed.gateway_epoch)]
    for key in gone:
        _change_held(allowances, key[2], -allowances.escrow.pop(key))
