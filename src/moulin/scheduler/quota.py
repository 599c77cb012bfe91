"""What a project may hold at one time, against what it holds and asks for.

Over quota waits; more than the quota could ever allow is refused at admission.
"""

from collections.abc import Iterator

from moulin.domain.factory import Quota
from moulin.domain.reasons import Reason, ReasonCode
from moulin.scheduler.demand import Demand
from moulin.scheduler.rows import Held, WorkloadRow
from moulin.scheduler.state import State


class QuotaCheck:
    """What projects hold as one decision sees it, growing with what it places."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._held: dict[str, Held] = {}
        self._now_live: set[str] = set()

    def adds_workload(self, row: WorkloadRow) -> bool:
        """Whether placing a unit makes one more workload hold something."""
        return row.attempts_live == 0 and row.submission.id not in self._now_live

    def has_room(self, row: WorkloadRow, wanted: Held) -> bool:
        """Whether the project may hold `wanted` more."""
        quota = self._state.declared.quota(row.submission.project)
        held = self.held(row.submission.project)
        return (
            _is_within(held.cpu_milli + wanted.cpu_milli, quota.cpu_milli)
            and _is_within(held.memory_bytes + wanted.memory_bytes, quota.memory_bytes)
            and _is_within(held.accelerators + wanted.accelerators, quota.accelerators)
            and _is_within(held.workloads + wanted.workloads, quota.workloads)
        )

    def take(self, row: WorkloadRow, wanted: Held) -> None:
        """Count `wanted` as held by the project."""
        held = self.held(row.submission.project)
        held.cpu_milli += wanted.cpu_milli
        held.memory_bytes += wanted.memory_bytes
        held.accelerators += wanted.accelerators
        held.workloads += wanted.workloads
        self._now_live.add(row.submission.id)

    def held(self, project: str) -> Held:
        """Return what a project holds, this decision's placements included."""
        found = self._held.get(project)
        if found is None:
            now = self._state.held_by_project.get(project, Held())
            found = self._held[project] = Held(
                now.cpu_milli, now.memory_bytes, now.accelerators, now.workloads
            )
        return found


def wanted_by(demand: Demand, *, workloads: int, units: int = 1) -> Held:
    """Return what some units of one demand would hold (a lease: at least)."""
    shape, tasks = demand.shape, demand.tasks * units
    return Held(
        cpu_milli=shape.cpu_milli * tasks,
        memory_bytes=shape.memory_bytes * tasks,
        accelerators=shape.accelerators * tasks,
        workloads=workloads,
    )


def shortfalls(project: str, quota: Quota, held: Held, wanted: Held) -> Iterator[Reason]:
    """Yield one reason per resource of which the quota lacks, in a fixed order."""
    for resource, limit, has, wants in _rows(quota, held, wanted):
        if not _is_within(has + wants, limit):
            yield Reason(
                code=ReasonCode.INSUFFICIENT_QUOTA,
                parameters={
                    "project": project,
                    "resource": resource,
                    "held": str(has),
                    "limit": str(limit),
                    "wanted": str(wants),
                },
            )


def excesses(project: str, quota: Quota, wanted: Held) -> Iterator[Reason]:
    """Yield one reason per resource of which the quota could never hold enough."""
    for resource, limit, _, wants in _rows(quota, Held(), wanted):
        if not _is_within(wants, limit):
            yield Reason(
                code=ReasonCode.EXCEEDS_QUOTA,
                parameters={
                    "project": project,
                    "resource": resource,
                    "limit": str(limit),
                    "wanted": str(wants),
                },
            )


def _rows(quota: Quota, held: Held, wanted: Held) -> Iterator[tuple[str, int, int, int]]:
    yield "CPU (milli)", quota.cpu_milli, held.cpu_milli, wanted.cpu_milli
    yield "memory (bytes)", quota.memory_bytes, held.memory_bytes, wanted.memory_bytes
    yield "accelerators", quota.accelerators, held.accelerators, wanted.accelerators
    yield "workloads", quota.workloads, held.workloads, wanted.workloads


def _is_within(amount: int, limit: int) -> bool:
    return limit < 0 or amount <= limit
