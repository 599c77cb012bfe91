"""The part of the log's vocabulary between control plane and gateways: epochs, promised money, journals.

The same rules hold as in `events.py`, which names these kinds with all others.
"""

from dataclasses import dataclass

from moulin.domain.ids import ProjectId
from moulin.domain.snapshot import JournalRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayEpochOpened:
    """A gateway process started; what its predecessor still holds stays held until settled."""

    gateway: str
    gateway_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantIssued:
    """Escrow moved from a project's budget to a gateway epoch."""

    gateway: str
    gateway_epoch: int
    project: ProjectId
    amount_neur: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantReturned:
    """Escrow came back unspent."""

    gateway: str
    gateway_epoch: int
    project: ProjectId
    amount_neur: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowanceGranted:
    """A part of an allowance was handed to a gateway epoch; `amount` is n€ or tokens, by its name."""

    gateway: str
    gateway_epoch: int
    allowance: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowanceReturned:
    """A part of an allowance came back unused; `is_closed` when the gateway has nothing more of it."""

    gateway: str
    gateway_epoch: int
    allowance: str
    amount: int
    is_closed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowanceAlerted:
    """What was used of an allowance reached a fraction of it, for the first time in its period."""

    allowance: str
    threshold_ppm: int
    used: int
    limit: int
    start_ns: int
    has_webhook: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettled:
    """The webhook took the alert of event `alert`, or it was given up after `attempts`."""

    alert: int
    is_delivered: bool
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecorded:
    """Journal lines of one gateway epoch, in sequence, up to `through_sequence`."""

    gateway: str
    gateway_epoch: int
    through_sequence: int
    records: tuple[JournalRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayEpochClosed:
    """A gateway epoch is over: its journal is complete or lost, its escrow settled and released."""

    gateway: str
    gateway_epoch: int
    is_journal_lost: bool = False
