"""Commands on secrets, and a step's own secrets opened when it is handed to its engine.

It decides which names a project has and which keys are to be destroyed. A value is opened for one
step and goes no further than its engine; the log, rows and answers never hold one. Decision 0041.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from moulin.controlplane.commands import Answer, DeleteSecret, SetSecret
from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.domain.errors import LocalError, NotFound, QuotaExceeded
from moulin.domain.plan import StartStep
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.secret_events import SecretDeleted, SecretSet
from moulin.domain.secrets import SECRETS_MAX, info_of
from moulin.domain.workload import TaskTemplate


def set_secret(plane: Plane, draft: Draft, command: SetSecret) -> Callable[[], Answer]:
    """Draft a secret in the place of what had its name; raises `NotFound`, `QuotaExceeded`."""
    sealed, known = command.secret, draft.books.sealed
    if draft.books.project(sealed.project) is None:
        raise NotFound(f"set a secret of {sealed.project}: there is no such project")
    is_new = (sealed.project, sealed.name) not in known.by_name
    if is_new and len(known.of_project(sealed.project)) >= SECRETS_MAX:
        raise QuotaExceeded(
            f"set secret {sealed.name}: project {sealed.project} has {SECRETS_MAX}",
            hint="delete some that nothing uses",
        )
    draft.append(SecretSet(secret=sealed), actor=command.principal.key, project=sealed.project)
    return lambda: info_of(sealed)


def delete_secret(plane: Plane, draft: Draft, command: DeleteSecret) -> Callable[[], Answer]:
    """Draft the end of a secret; raises `NotFound`. Work that waits with it will not start."""
    found = draft.books.sealed.by_name.get((command.project, command.name))
    if found is None:
        raise NotFound(f"delete secret {command.name}: project {command.project} has none")
    draft.append(
        SecretDeleted(project=command.project, name=command.name, by=command.principal.name),
        actor=command.principal.key,
        project=command.project,
    )
    return lambda: info_of(found)


def shred_dropped(plane: Plane) -> None:
    """Destroy the keys of secrets whose end is durable; what fails is tried again next time."""
    dropped = plane.books.sealed.dropped
    if dropped:
        with contextlib.suppress(LocalError):
            plane.ports.vault.shred(dropped)
            dropped.clear()


def missing_secrets(draft: Draft, project: str, task: TaskTemplate | None) -> Iterator[Reason]:
    """Yield a reason for each secret that a task names and its project has not."""
    if task is None:
        return
    for name in sorted({*task.secrets.values(), *task.secret_files.values()}):
        if (project, name) not in draft.books.sealed.by_name:
            parameters = {"secret": name, "project": project}
            yield Reason(code=ReasonCode.SECRET_UNKNOWN, parameters=parameters)


def with_secrets(plane: Plane, step: StartStep) -> StartStep:
    """Return the step with the values of its secrets; raises `NotFound` when one is gone."""
    if not (step.task.secrets or step.task.secret_files):
        return step
    return replace(
        step,
        secrets={each: _value(plane, step, name) for each, name in step.task.secrets.items()},
        secret_files={
            each: _value(plane, step, name) for each, name in step.task.secret_files.items()
        },
    )


def _value(plane: Plane, step: StartStep, name: str) -> str:
    sealed = plane.books.sealed.by_name.get((step.project, name))
    if sealed is None:
        raise NotFound(f"secret {name} of project {step.project} is gone", hint="set it again")
    return plane.ports.vault.open(sealed).decode()
