"""Commands on tenants' stored objects and batches.

They decide what fits a project's storage and in which order a batch may change. The bytes
themselves are elsewhere: whoever stores them says so afterwards, whoever deletes them is told before.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from moulin.controlplane.commands import (
    Answer,
    CancelBatch,
    DeleteObject,
    EndBatch,
    OpenBatch,
    StoreObject,
)
from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.domain.errors import AlreadyExists, Conflict, InUse, NotFound, QuotaExceeded
from moulin.domain.events import (
    BatchCancelled,
    BatchEnded,
    BatchOpened,
    ObjectDeleted,
    ObjectStored,
)
from moulin.domain.objects import (
    FINAL_BATCH_STATES,
    BatchJob,
    BatchState,
    StoredObject,
)
from moulin.domain.plan import StartStep
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.units import format_scaled
from moulin.domain.workload import TaskTemplate

Finish = Callable[[], Answer]


def store_object(plane: Plane, draft: Draft, command: StoreObject) -> Finish:
    """Draft a stored object; raises `QuotaExceeded`, `AlreadyExists`, `NotFound`."""
    _store(draft, command.object, command.principal.key)
    return lambda: command.object


def delete_object(plane: Plane, draft: Draft, command: DeleteObject) -> Finish:
    """Draft the end of a stored object, or of a batch that is final.

    Raises `NotFound`, `Conflict` for a batch that runs, `InUse` for what such a one reads.
    """
    objects = draft.books.objects
    found = objects.stored.get(command.object) or objects.batches.get(command.object)
    if found is None:
        raise NotFound(f"delete {command.object}: there is no such object")
    if isinstance(found, BatchJob) and found.state not in FINAL_BATCH_STATES:
        raise Conflict(f"delete {command.object}: it runs", hint="cancel it first")
    users = [
        batch.id
        for batch in objects.batches.values()
        if command.object in batch.input_files and batch.state not in FINAL_BATCH_STATES
    ]
    if isinstance(found, StoredObject):
        users += _jobs_with(draft, found)
    if users:
        raise InUse(
            f"delete {command.object}: {', '.join(users[:5])} reads it",
            hint="cancel it first, or wait for its end",
            details={"users": users},
        )
    draft.append(
        ObjectDeleted(object=command.object, cause=command.cause),
        actor=command.principal.key,
        project=found.project,
    )
    return lambda: found


def _jobs_with(draft: Draft, stored: StoredObject) -> list[str]:
    """Return unfinished jobs that are yet to unpack a bundle, or may start again with it."""
    objects, schedule = draft.books.objects, draft.books.schedule
    if objects.bundles.get((stored.project, stored.sha256)) != stored.id:
        return []
    rows = (
        schedule.workloads[each] for each in schedule.unfinished_by_project.get(stored.project, {})
    )
    found = ((row.submission.id, row.submission.spec.task) for row in rows)
    return [each for each, task in found if task is not None and task.bundle == stored.sha256]


def missing_bundle(draft: Draft, project: str, task: TaskTemplate | None) -> Iterator[Reason]:
    """Yield why a task cannot have the bundle that it names: its project keeps none like it."""
    digest = task.bundle if task is not None else ""
    if digest and draft.books.objects.bundle(project, digest) is None:
        parameters = {"digest": digest[:12], "project": project}
        yield Reason(code=ReasonCode.BUNDLE_UNKNOWN, parameters=parameters)


def with_bundle(plane: Plane, step: StartStep) -> StartStep:
    """Return the step with where its bundle is; raises `NotFound` when it is gone."""
    if not step.task.bundle:
        return step
    found = plane.books.objects.bundle(step.project, step.task.bundle)
    if found is None:
        raise NotFound(f"bundle {step.task.bundle[:12]} of project {step.project} is gone")
    return replace(step, bundle_path=plane.ports.bytes_at(found.id))


def open_batch(plane: Plane, draft: Draft, command: OpenBatch) -> Finish:
    """Draft a batch; raises `NotFound` when one of its files is gone by now."""
    batch = command.batch
    for name in batch.input_files:
        if name not in draft.books.objects.stored:
            raise NotFound(f"open a batch: file {name} is gone", hint="upload it again")
    draft.append(BatchOpened(batch=batch), actor=command.principal.key, project=batch.project)
    return lambda: batch


def cancel_batch(plane: Plane, draft: Draft, command: CancelBatch) -> Finish:
    """Draft that no further line of a batch is begun; raises `NotFound`, `Conflict`."""
    batch = _batch(draft, command.batch)
    if batch.state in FINAL_BATCH_STATES:
        raise Conflict(f"cancel {batch.id}: it is {batch.state}", details={"state": batch.state})
    if batch.state is not BatchState.CANCELLING:
        draft.append(
            BatchCancelled(batch=batch.id, by=command.principal.name),
            actor=command.principal.key,
            project=batch.project,
        )
    return lambda: draft.books.objects.batches[command.batch]


def end_batch(plane: Plane, draft: Draft, command: EndBatch) -> Finish:
    """Draft the end of a batch together with its files; one that has ended stays as it is."""
    batch = _batch(draft, command.batch.id)
    if batch.state not in FINAL_BATCH_STATES:
        for each in command.files:
            _store(draft, each, command.principal.key, is_bounded=False)
        ended = replace(
            command.batch, cancelled_at_ns=batch.cancelled_at_ns, ended_at_ns=draft.now_ns
        )
        draft.append(BatchEnded(batch=ended), actor=command.principal.key, project=batch.project)
    return lambda: draft.books.objects.batches[command.batch.id]


def _batch(draft: Draft, name: str) -> BatchJob:
    found = draft.books.objects.batches.get(name)
    if found is None:
        raise NotFound(f"find {name}: there is no such batch")
    return found


def _store(draft: Draft, stored: StoredObject, actor: str, *, is_bounded: bool = True) -> None:
    """Draft one object. What a batch wrote is kept even above the quota: its answers are paid."""
    objects = draft.books.objects
    project = draft.books.project(stored.project)
    if project is None:
        raise NotFound(f"store in {stored.project}: there is no such project")
    if stored.id in objects.stored:
        raise AlreadyExists(f"store {stored.id}: it exists")
    limit_bytes, used_bytes = project.quota.stored_bytes, objects.used_bytes(stored.project)
    if is_bounded and 0 <= limit_bytes < used_bytes + stored.size_bytes:
        raise QuotaExceeded(
            f"store {_megabytes(stored.size_bytes)}: project {stored.project} keeps "
            f"{_megabytes(used_bytes)} of its {_megabytes(limit_bytes)}",
            hint="delete files, or ask the operator for more storage",
            details={"used_bytes": used_bytes, "limit_bytes": limit_bytes},
        )
    draft.append(ObjectStored(object=stored), actor=actor, project=stored.project)


def _megabytes(size_bytes: int) -> str:
    return f"{format_scaled(size_bytes, 10**6)} MB"
