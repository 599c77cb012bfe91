"""Bugs planted into the real code, each for as long as a context lasts: the proof that the judge sees.

A plant patches the name the code itself calls, nowhere else. None of them announces itself; the
simulation has to find each from the outside, within `SEEDS_MAX` seeds.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from moulin.controlplane import (
    act,
    answer,
    books,
    cycle,
    forgetting,
    recover,
    retention,
    run,
    schedule,
    submit,
    sync,
)
from moulin.domain.errors import EngineUnavailable
from moulin.domain.events import (
    AttemptDrainDecided,
    AttemptStopDecided,
    NodeReachabilityChanged,
    WorkloadFinished,
    WorkloadStopRequested,
)
from moulin.domain.gateway_events import GrantIssued
from moulin.domain.health import Verdict
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import WorkloadState
from moulin.ledger import balances as ledger_balances
from moulin.scheduler import (
    batch,
    declared,
    ending,
    health,
    replicas,
    scaling,
    settle,
    wellbeing,
)
from moulin.scheduler.decide import Placing
from moulin.scheduler.declared import Declared
from moulin.scheduler.fold import _HANDLERS
from moulin.scheduler.nodes import Column, NodeTable
from moulin.scheduler.quota import QuotaCheck
from moulin.scheduler.rows import WorkloadRow
from moulin.store.memory import MemoryStore
from tests.simulation.run import Result, simulate

SEEDS_MAX = 80
# What the real code raises on purpose when it notices a bug; anything else is a plant that is broken.
NOTICED = frozenset({"", "InvariantViolated", "StoreCorrupt"})
STEPS = 120
Plant = Callable[[], Any]


def _patches(*pairs: tuple[Any, Any, Any]) -> Any:
    @contextmanager
    def planted() -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, value in pairs:
                if isinstance(owner, dict):
                    stack.enter_context(patch.dict(owner, {name: value}))
                else:
                    stack.enter_context(patch.object(owner, name, value))
            yield

    return planted()


def unreachable_is_failed() -> Any:
    """A node that cannot be asked has lost its tasks: they are freed and tried again."""

    def handler(state: Any, payload: NodeReachabilityChanged, event: Any) -> None:
        original(state, payload, event)
        row = state.nodes.row(payload.node)
        if not payload.is_reachable and row is not None:
            for task in list(row.tasks.values()):
                task.phase, task.ended_at_ns = TaskPhase.GONE, event.at_ns
                ending.end_task(state, task, event.at_ns)

    original = _HANDLERS[NodeReachabilityChanged]
    return _patches((_HANDLERS, NodeReachabilityChanged, handler))


def retry_before_evidence() -> Any:
    """A decided stop counts as an end, before any engine proved it."""

    def handler(state: Any, payload: AttemptStopDecided, event: Any) -> None:
        original(state, payload, event)
        attempt = state.attempts.get(payload.attempt)
        for task in attempt.tasks if attempt is not None else ():
            if not task.is_ended:
                task.phase, task.ended_at_ns = TaskPhase.GONE, event.at_ns
                ending.end_task(state, task, event.at_ns)

    original = _HANDLERS[AttemptStopDecided]
    return _patches((_HANDLERS, AttemptStopDecided, handler))


def idempotency_ignored() -> Any:
    """A submission sent again is a new one."""
    return _patches((submit, "_repeated", lambda *_: None))


def answered_before_durable() -> Any:
    """Callers are answered, then the commit may fail."""
    last: list[Any] = []

    def remember(plane: Any, draft: Any, answered: Any) -> None:
        last[:] = [answered]
        answer_calls(plane, draft, answered)

    def commit(plane: Any, draft: Any) -> None:
        answer.release_answers(plane, last.pop())
        original(plane, draft)

    answer_calls, original = vars(cycle)["answer_calls"], cycle.commit
    return _patches((cycle, "answer_calls", remember), (cycle, "commit", commit))


def effects_before_durable() -> Any:
    """Engines are told before the plan is committed."""

    def early(plane: Any, draft: Any) -> Any:
        plan = original(plane, draft)
        act.act(plane, plan)
        return plan

    original = vars(cycle)["schedule"]
    return _patches((cycle, "schedule", early))


def grant_without_reserving() -> Any:
    """A gateway's grant is not held from the budget."""

    def unreserved(balances: Any, event: Any) -> None:
        if not isinstance(event.payload, GrantIssued):
            original(balances, event)

    original = vars(books)["fold_balances"]
    return _patches((books, "fold_balances", unreserved))


def zone_state_ignored() -> Any:
    """Draining, closed and unfinished zones take work."""

    def label(self: Any, row: Any, objects: Any) -> None:
        original(self, row, objects)
        is_placeable = row.is_present and row.is_reachable
        self._room[Column.IS_PLACEABLE, self.index[row.capacity.node]] = is_placeable

    original = NodeTable.label
    return _patches((NodeTable, "label", label), (Declared, "open_zones", Declared.permitted_zones))


def where_ignored() -> Any:
    """Work goes to any country."""
    return _patches((Declared, "forbids", lambda *_: None))


def guessed_country_believed() -> Any:
    """A country that is only guessed satisfies a `where`."""
    return _patches((declared, "CountryBasis", SimpleNamespace(GUESSED=None)))


def quota_ignored() -> Any:
    """A project may hold anything."""
    return _patches((QuotaCheck, "has_room", lambda *_: True))


def former_leader_accepted() -> Any:
    """The store takes the writes of a control plane that lost the lead."""

    def commit(self: Any, batch: Any) -> None:
        if self._epoch and batch.epoch != self.disk.epoch:
            self._write(batch)
        else:
            original(self, batch)

    original = MemoryStore.commit
    return _patches((MemoryStore, "commit", commit))


def metering_forgets_in_a_crash() -> Any:
    """A control plane that comes back meters again what its predecessor had metered."""

    def read(log: Any) -> Any:
        found = original(log)
        for cursor in found.cursors.nodes.values():
            cursor.until_ns -= 3 * 10**9
        for step in found.cursors.steps.values():
            step.until_ns = max(0, step.until_ns - 3 * 10**9)
        return found

    original = vars(recover)["read_books"]
    return _patches((recover, "read_books", read))


def journal_counted_again() -> Any:
    """Journal lines that are sent again after a lost answer are taken again."""

    def all_records(book: Any, records: Any) -> Any:
        first = book.through_sequence + 1
        return tuple(replace(each, sequence=first + place) for place, each in enumerate(records))

    return _patches((sync, "new_records", all_records))


def gang_started_in_part() -> Any:
    """Only the first task of a gang is started."""

    def start(plane: Any, step: Any, gathered: Any) -> None:
        if step.endswith(".t0"):
            original(plane, step, gathered)
        else:
            plane.unstarted.discard(step)

    original = act._gather
    return _patches((act, "_gather", start))


def time_limit_ignored() -> Any:
    """Nothing is stopped when its time is over."""
    return _patches((settle, "_time_limits", lambda *_: iter(())))


def failed_commit_forgotten() -> Any:
    """After a failed commit the books keep what never became durable."""

    def keep(plane: Any) -> None:
        plane.is_ahead = False

    return _patches((run, "read_again", keep))


def starts_not_resumed() -> Any:
    """A control plane that comes back does not repeat what may never have happened."""
    return _patches((recover, "resume", lambda _plane: None))


def budget_ignored() -> Any:
    """Work of a project whose money is spent goes on being placed."""
    return _patches((schedule, "exhausted", lambda _draft: ()))


def reservation_freed_early() -> Any:
    """What a gateway set aside is free again as soon as it says that a request began."""

    def settle_early(balances: Any, recorded: Any) -> None:
        for record in recorded.records:
            original(balances, replace(recorded, records=(record,)))
            key = (recorded.gateway, recorded.gateway_epoch, record.project)
            ledger_balances._shrink_escrow(balances, key, record.amount_neur)

    original = ledger_balances._settle
    return _patches((ledger_balances, "_settle", settle_early))


def hold_released_early() -> Any:
    """A workload's hold is given back with its end, before its last interval is charged."""

    def release_at_once(balances: Any, event: Any) -> None:
        original(balances, event)
        if isinstance(event.payload, WorkloadFinished):
            ledger_balances.release(balances, event.payload.workload)

    original = vars(books)["fold_balances"]
    return _patches((books, "fold_balances", release_at_once))


def hold_kept_for_ever() -> Any:
    """What is left of a hold is never given back."""
    return _patches((books, "release", lambda *_: False))


def decision_by_chance() -> Any:
    """A decision depends on something that is not in the log."""
    count = iter(range(10**9))

    def places(self: Any) -> Any:
        found = list(original(self))
        return iter(found[:-1] if found and next(count) % 5 == 4 else found)

    original = Placing.places
    return _patches((Placing, "places", places))


def forgotten_unmetered() -> Any:
    """A finished workload's records go though what it used is still to be read from them."""
    return _patches((forgetting, "is_metered", lambda *_: True))


def retention_ignored() -> Any:
    """Records go as soon as they are metered, however long they were to be kept."""
    return _patches((retention, "NS_PER_S", 0))


def forgetting_not_resumed() -> Any:
    """A control plane that comes back does not know what its predecessor had still to forget."""
    return _patches((recover, "forgetting_of", lambda _book: retention.Forgetting()))


def forgotten_once_at_most() -> Any:
    """What an engine could not forget when it was asked is put on record all the same."""

    def forget_step(plane: Any, pool: str, step: Any) -> None:
        with suppress(EngineUnavailable):
            original(plane, pool, step)

    original = forgetting._forget_step
    return _patches((forgetting, "_forget_step", forget_step))


def drain_dropped() -> Any:
    """A replica that is to go is stopped at once, whoever still talks to it."""
    return _patches((scaling, "_is_over", lambda *_: True))


def left_without_asking() -> Any:
    """A gateway counts as having left a replica before it was told to."""

    def handler(state: Any, payload: AttemptDrainDecided, event: Any) -> None:
        original(state, payload, event)
        drain = state.drains.get(payload.attempt)
        if drain is not None:
            drain.left.update(dict.fromkeys(state.gateways, True))

    original = _HANDLERS[AttemptDrainDecided]
    return _patches((_HANDLERS, AttemptDrainDecided, handler))


def replicas_flap() -> Any:
    """What load asked for a moment ago is forgotten."""
    return _patches((replicas, "_remember", lambda *_: None))


def array_limit_ignored() -> Any:
    """As many elements of an array hold something as there is room for."""
    return _patches((WorkloadRow, "at_most", 0))


def hold_ignored() -> Any:
    """What is held is placed like anything else."""
    is_free = property(lambda row: not (row.after_left or row.after_failed))
    return _patches((WorkloadRow, "is_eligible", is_free))


def dependency_ignored() -> Any:
    """Nobody waits for the end of another workload."""
    return _patches((WorkloadRow, "is_eligible", property(lambda row: not row.is_held)))


def failed_dependency_forgiven() -> Any:
    """Whatever end another workload has, it counts as the one that was waited for."""
    return _patches((batch, "_meet", lambda *_: None))


def element_stop_forgotten() -> Any:
    """Asking for the end of some elements of an array has no effect."""

    def handler(state: Any, payload: WorkloadStopRequested, event: Any) -> None:
        if not payload.units:
            original(state, payload, event)

    original = _HANDLERS[WorkloadStopRequested]
    return _patches((_HANDLERS, WorkloadStopRequested, handler))


def failed_elements_forgotten() -> Any:
    """An array succeeds when all its elements have ended, however they did."""
    return _patches((settle, "_array_outcome", lambda *_: settle.Outcome(WorkloadState.SUCCEEDED)))


def quarantine_ignored() -> Any:
    """A node in quarantine takes work like any other."""

    def label(self: Any, row: Any, objects: Any) -> None:
        verdict, row.health.verdict = row.health.verdict, Verdict.HEALTHY
        original(self, row, objects)
        row.health.verdict = verdict

    original = NodeTable.label
    return _patches((NodeTable, "label", label))


def calm_ignored() -> Any:
    """A node is well again as soon as it shows nothing."""
    return _patches((health, "is_calm", lambda row, *_: not row.symptoms))


def every_symptom_is_evidence() -> Any:
    """What may pass puts a node away at once."""

    def symptoms(before: Any, now: Any) -> Any:
        return tuple(replace(each, is_evidence=True) for each in original(before, now))

    original = health.symptoms_of
    return _patches((health, "symptoms_of", symptoms))


def neighbours_are_struck() -> Any:
    """What runs beside a broken device is stopped as well."""
    return _patches((wellbeing, "is_struck", lambda *_: True))


PLANTS: tuple[Plant, ...] = (
    unreachable_is_failed,
    retry_before_evidence,
    idempotency_ignored,
    answered_before_durable,
    effects_before_durable,
    grant_without_reserving,
    zone_state_ignored,
    where_ignored,
    guessed_country_believed,
    quota_ignored,
    former_leader_accepted,
    metering_forgets_in_a_crash,
    journal_counted_again,
    gang_started_in_part,
    time_limit_ignored,
    failed_commit_forgotten,
    starts_not_resumed,
    budget_ignored,
    reservation_freed_early,
    hold_released_early,
    hold_kept_for_ever,
    decision_by_chance,
    forgotten_unmetered,
    retention_ignored,
    forgetting_not_resumed,
    forgotten_once_at_most,
    drain_dropped,
    left_without_asking,
    replicas_flap,
    array_limit_ignored,
    hold_ignored,
    dependency_ignored,
    failed_dependency_forgiven,
    element_stop_forgotten,
    failed_elements_forgotten,
    quarantine_ignored,
    calm_ignored,
    every_symptom_is_evidence,
    neighbours_are_struck,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A plant with the first seed that shows it; None when no seed did."""

    plant: str
    seeds: int
    result: Result | None


def search(plant: Plant, seeds_max: int = SEEDS_MAX) -> Found:
    """Run seeds with a bug planted until one of them finds it.

    Raises `TypeError` when the plant does not fit the code any more.
    """
    for seed in range(1, seeds_max + 1):
        with plant():
            result = simulate(seed, steps=STEPS)
        if result.error not in NOTICED:
            raise TypeError(f"plant {plant.__name__}, seed {seed}: {result.trace}")
        if result.violation:
            return Found(plant=plant.__name__, seeds=seed, result=result)
    return Found(plant=plant.__name__, seeds=seeds_max, result=None)
