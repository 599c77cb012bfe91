"""What was used of each allowance in its period, and what gateways hold of it, folded from the log.

    available = limit - used - held        nothing is handed out beyond it

What is used beyond a limit from any cause is debt: it stays used in the next period. A period turns
at the first event after its end; what a gateway still holds then counts against the new period.
This module never prices, refuses or alerts; it says what may be handed out and what is to be told.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from moulin.domain.events import (
    AlertSettled,
    AllowanceAlerted,
    AllowanceGranted,
    AllowanceReturned,
    Event,
    FactoryApplied,
    GatewayEpochClosed,
    JournalRecorded,
    KeyCreated,
    KeyUpdated,
    UsagesCharged,
)
from moulin.domain.factory import ObjectKind, Organisation, Project
from moulin.domain.limits import (
    Allowance,
    AllowanceUnit,
    AllowanceView,
    LimitScope,
    Period,
    allowance_name,
    parts_of,
    period_of,
)
from moulin.domain.snapshot import JournalKind, JournalRecord

EscrowKey = tuple[str, int, str]


@dataclass(slots=True)
class Spending:
    """One allowance in one unit; amounts are n€ or tokens. `alerted_ppm` is the last one told."""

    limit: int
    period: Period
    alerts_ppm: tuple[int, ...] = ()
    start_ns: int = 0
    end_ns: int = 0
    used: int = 0
    held: int = 0
    alerted_ppm: int = 0

    def available(self, now_ns: int) -> int:
        """Return what may be handed out now; below zero in debt."""
        return self.limit - self.used_at(now_ns) - self.held

    def used_at(self, now_ns: int) -> int:
        """Return what is used of the period that holds `now_ns`: nothing but debt in a new one."""
        if self.period is Period.EVER or now_ns < self.end_ns:
            return self.used
        return max(0, self.used - self.limit)

    def turn(self, now_ns: int) -> None:
        """Go over into the period that holds `now_ns`, if it is a later one."""
        if self.period is not Period.EVER and now_ns >= self.end_ns:
            if self.end_ns:
                self.used = self.used_at(now_ns)
                self.alerted_ppm = 0
            self.start_ns, self.end_ns = period_of(self.period, now_ns)

    def alert_due(self) -> int:
        """Return the largest fraction that was reached and not told in this period, 0 for none."""
        reached = [
            ppm
            for ppm in self.alerts_ppm
            if ppm > self.alerted_ppm and self.used * 1_000_000 >= self.limit * ppm
        ]
        return max(reached, default=0)


@dataclass(slots=True)
class Settled:
    """What an ended request used of which allowances, until its charge is known exactly."""

    names: tuple[str, ...]
    amount_neur: int


@dataclass(slots=True)
class Allowances:
    """Every allowance by name, escrow per (gateway, epoch, name), requests not charged yet.

    `lines` maps a key to the first of its line, `newest` that one to the last; `begun` a request to the allowances it may use.
    `touched` are allowances used since somebody last looked for alerts; `untold` are alerts whose
    webhook has not answered, by their event.
    """

    spending: dict[str, Spending] = field(default_factory=dict)
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
        case KeyUpdated(key=key):
            # What a key that was replaced still says of the line's limits is of the past.
            if allowances.newest.get(key.line) == key.id:
                _declare(allowances, LimitScope.KEY, key.line, key.allowance, event.at_ns)
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
            _hold(allowances, granted, granted.amount)
        case AllowanceReturned() as returned:
            _hold(allowances, returned, -returned.amount)
        case GatewayEpochClosed() as closed:
            _close(allowances, closed)
        case AllowanceAlerted() as alerted:
            if alerted.allowance in allowances.spending:
                allowances.spending[alerted.allowance].alerted_ppm = alerted.threshold_ppm
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


def _held(allowances: Allowances, name: str) -> int:
    return sum(held for key, held in allowances.escrow.items() if key[2] == name)


def _hold(
    allowances: Allowances, escrow: AllowanceGranted | AllowanceReturned, change: int
) -> None:
    key = (escrow.gateway, escrow.gateway_epoch, escrow.allowance)
    before = allowances.escrow.get(key, 0)
    after = max(0, before + change)
    allowances.escrow[key] = after
    spending = allowances.spending.get(escrow.allowance)
    if spending is not None:
        spending.held += after - before


def _record(allowances: Allowances, recorded: JournalRecorded, at_ns: int) -> None:
    """Count what ended requests used; an end counts once, after its begin."""
    for record in recorded.records:
        if record.kind is JournalKind.BEGIN:
            names = allowances.names_of(record.organisation, record.project, record.key)
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
        spending = allowances.spending.get(name)
        if spending is None:
            continue
        spending.turn(at_ns)
        spending.held -= taken
        spending.used += amount
        allowances.touched[name] = None
        if is_euros:
            in_euros.append(name)
    if in_euros:
        allowances.settled[record.request] = Settled(tuple(in_euros), record.amount_neur)


def _correct(allowances: Allowances, charged: UsagesCharged) -> None:
    """Count what was charged instead of what the gateway expected it to be."""
    for item in charged.items:
        settled = allowances.settled.pop(item.workload, None) if item.is_from_grant else None
        if settled is None or settled.amount_neur == item.amount_neur:
            continue
        for name in settled.names:
            spending = allowances.spending.get(name)
            if spending is not None:
                spending.used = max(0, spending.used + item.amount_neur - settled.amount_neur)
                allowances.touched[name] = None


def _close(allowances: Allowances, closed: GatewayEpochClosed) -> None:
    gone = [key for key in allowances.escrow if key[:2] == (closed.gateway, closed.gateway_epoch)]
    for key in gone:
        held = allowances.escrow.pop(key)
        spending = allowances.spending.get(key[2])
        if spending is not None:
            spending.held -= held
