"""Decides whether a submission may wait for its placement and what is held for it.

It never places anything: what no waiting can cure (jurisdiction, hardware, quota) arrives as
`impossible`, found by the scheduler; what is over quota *now* is admitted and waits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.units import divide_round_half_even, format_euros
from moulin.domain.usage import Meter
from moulin.domain.workload import Submission, WorkloadKind, WorkloadSpec, units_wanted

SERVED_KINDS = frozenset({WorkloadKind.JOB, WorkloadKind.ENDPOINT, WorkloadKind.LEASE})
OPEN_ENDED_HOLD_S = 3600
MS_PER_S = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPrice:
    """The price of one meter as it applies to a submission now."""

    meter: str
    unit_price_neur: int
    per: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The submission may wait; `reserved_neur` is held; `decision` is the digest to cite."""

    reserved_neur: int
    decision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """The submission is refused for these reasons, in the order of DESIGN rule 3."""

    reasons: tuple[Reason, ...]


def admit(
    submission: Submission,
    impossible: Sequence[Reason],
    prices: Sequence[UnitPrice],
    available_neur: int | None,
    budget_neur: int,
) -> Admitted | Denied:
    """Admit a submission or say with numbers why not.

    `available_neur` is what the project may still promise (None: no limit); a workload without
    an end holds its first hour, and lives on what is available after that.
    """
    kind = submission.spec.kind
    if kind not in SERVED_KINDS:
        return Denied(reasons=(Reason(code=ReasonCode.KIND_NOT_SERVED, parameters={"kind": kind}),))
    if impossible:
        return Denied(reasons=tuple(impossible))
    reserved_neur = reservation_neur(submission, prices)
    if available_neur is not None and (reserved_neur > available_neur or available_neur <= 0):
        return Denied(
            reasons=(
                Reason(
                    code=ReasonCode.BUDGET_EXCEEDED,
                    parameters={
                        "project": submission.project,
                        "left_eur": format_euros(available_neur),
                        "limit_eur": format_euros(budget_neur),
                        "wanted_eur": format_euros(reserved_neur),
                    },
                ),
            )
        )
    return Admitted(reserved_neur=reserved_neur, decision=_digest(submission, reserved_neur))


def held_s(spec: WorkloadSpec) -> int:
    """Return for how long money is held: until a time limit, or the first hour of what has no end.

    The time limit of an endpoint is each replica's: another follows it.
    """
    is_endpoint = spec.kind is WorkloadKind.ENDPOINT
    return OPEN_ENDED_HOLD_S if is_endpoint else spec.time_limit_s or OPEN_ENDED_HOLD_S


def reservation_neur(submission: Submission, prices: Sequence[UnitPrice]) -> int:
    """Return the price of everything the submission may hold for as long as it is held for."""
    spec = submission.spec
    tasks = spec.nodes * units_wanted(spec)
    held_ms = held_s(spec) * MS_PER_S * tasks
    quantity_by_meter = {
        Meter.CPU_MILLI_MS: spec.resources.cpu_milli * held_ms,
        Meter.MEMORY_MB_MS: -(-spec.resources.memory_bytes * held_ms // 10**6),
        Meter.ACCELERATOR_MS: spec.resources.accelerators * held_ms,
    }
    return sum(
        divide_round_half_even(
            quantity_by_meter[Meter(price.meter)] * price.unit_price_neur, price.per
        )
        for price in prices
        if price.meter in quantity_by_meter
    )


def _digest(submission: Submission, reserved_neur: int) -> str:
    """Name the decision by what it was made of, so that a receipt can cite it."""
    where = submission.spec.where
    text = "\n".join(
        (
            "moulin policy v1",
            submission.id,
            submission.organisation,
            submission.project,
            ",".join(where.countries),
            ",".join(where.zones),
            str(reserved_neur),
        )
    )
    return hashlib.sha256(text.encode()).hexdigest()
