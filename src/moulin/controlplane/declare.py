"""Applies an operator file: a diff first, then one event, or nothing at all.

An object belongs to the file that declared it; a file removes only its own. What is in use is not
removed, and references must resolve inside the result.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from moulin.controlplane.books import Books, Declared
from moulin.controlplane.commands import Answer, Applied, ApplyFactory, ObjectDiff
from moulin.controlplane.draft import Draft
from moulin.controlplane.lookup import pool_of
from moulin.controlplane.plane import Plane
from moulin.domain.errors import Conflict, InUse, InvalidSpec
from moulin.domain.events import FactoryApplied, ObjectChange
from moulin.domain.factory import (
    Alias,
    DeclaredObject,
    ObjectKind,
    Pool,
    Project,
    Site,
    Zone,
    kind_of,
)
from moulin.domain.wire import encode
from moulin.domain.workload import FINAL_WORKLOAD_STATES
from moulin.scheduler import live_steps

Key = tuple[ObjectKind, str]
Objects = dict[Key, Declared]
USERS_SHOWN_MAX: Final = 20
# What an evidence log, a directory and a URL can all carry.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def apply_factory(plane: Plane, draft: Draft, command: ApplyFactory) -> Callable[[], Answer]:
    """Draft one event that makes the file true; a dry run and a no-op draft nothing.

    Raises `InvalidSpec` for a name declared twice, a reference to nothing or pools that cannot
    stand beside one another, `Conflict` for an object another file manages, `InUse` with the users
    of what would be removed or exchanged, and what an engine says of a pool it cannot serve.
    """
    before = draft.books.declared
    changes = changes_of(before, command.managed_by, command.objects)
    after = _applied(before, changes, command.managed_by)
    check_references(after)
    _check_in_use(draft.books, changes)
    _check_pools(plane, after, changes)
    applied = Applied(
        diffs=tuple(_diff(before, change) for change in changes),
        is_dry_run=command.is_dry_run,
        sequence=draft.books.sequence,
    )
    if changes and not command.is_dry_run:
        draft.append(
            FactoryApplied(managed_by=command.managed_by, changes=changes),
            actor=command.principal.key,
        )
        plane.due_ns.pop("capacity", None)
    return lambda: applied


def changes_of(
    before: Mapping[Key, Declared], managed_by: str, objects: tuple[DeclaredObject, ...]
) -> tuple[ObjectChange, ...]:
    """Return what differs between the declared objects and one file's wish, in kind order.

    Raises `InvalidSpec` for a name that cannot be one or comes twice, and `Conflict` when another
    file manages it.
    """
    wanted: dict[Key, DeclaredObject] = {}
    for value in objects:
        key = (kind_of(value), value.name)
        if not NAME.fullmatch(value.name):
            raise InvalidSpec(
                f"apply {managed_by}: {key[0]} {value.name!r} is not a name",
                hint="use letters, digits, dots, dashes and underscores, 63 at most",
            )
        if key in wanted:
            raise InvalidSpec(f"apply {managed_by}: {key[0]} {key[1]!r} is declared twice")
        owner = before.get(key)
        if owner is not None and owner.managed_by != managed_by:
            raise Conflict(
                f"apply {managed_by}: {key[0]} {key[1]!r} is managed by {owner.managed_by}",
                hint=f"change it in {owner.managed_by}, or choose another name",
            )
        wanted[key] = value
    order = list(ObjectKind)
    gone = [k for k, d in before.items() if d.managed_by == managed_by and k not in wanted]
    changed = [k for k, v in wanted.items() if k not in before or before[k].value != v]
    removals = sorted(gone, key=lambda k: (-order.index(k[0]), k[1]))
    settings = sorted(changed, key=lambda k: (order.index(k[0]), k[1]))
    return tuple(ObjectChange(kind=k[0], name=k[1]) for k in removals) + tuple(
        ObjectChange(kind=k[0], name=k[1], value=wanted[k]) for k in settings
    )


def check_references(objects: Mapping[Key, Declared]) -> None:
    """Raise `InvalidSpec` when an object names another that is not declared."""
    for (kind, name), declared in sorted(objects.items()):
        for wanted_kind, wanted in _references(declared.value):
            if (wanted_kind, wanted) not in objects:
                known = sorted(n for k, n in objects if k is wanted_kind)
                raise InvalidSpec(
                    f"{kind} {name!r} names {wanted_kind} {wanted!r}, which is not declared",
                    hint=f"declared: {', '.join(known) or 'none'}",
                )


def _references(value: DeclaredObject) -> Iterator[Key]:
    match value:
        case Site():
            if value.operator:
                yield ObjectKind.ORGANISATION, value.operator
            for owner in sorted(value.owners):
                yield ObjectKind.ORGANISATION, owner
        case Zone():
            yield ObjectKind.SITE, value.site
        case Pool():
            yield ObjectKind.ZONE, value.zone
        case Project():
            yield ObjectKind.ORGANISATION, value.organisation
        case Alias() if value.project:
            yield ObjectKind.PROJECT, value.project
        case _:
            return


def _applied(before: Objects, changes: tuple[ObjectChange, ...], managed_by: str) -> Objects:
    after = dict(before)
    for change in changes:
        if change.value is None:
            after.pop((change.kind, change.name), None)
        else:
            after[(change.kind, change.name)] = Declared(value=change.value, managed_by=managed_by)
    return after


def _check_in_use(books: Books, changes: tuple[ObjectChange, ...]) -> None:
    """Raise `InUse` for what is removed or exchanged under its users."""
    for change in changes:
        if change.value is not None and not _moves_work(books, change):
            continue
        users = sorted(_users(books, change.kind, change.name))
        if users:
            doing = "remove" if change.value is None else "move or reconnect"
            shown = ", ".join(users[:USERS_SHOWN_MAX])
            raise InUse(
                f"{doing} {change.kind} {change.name!r}: {len(users)} user(s): {shown}",
                hint="stop or move them first; nothing was applied",
                details={"users": users},
            )


def _moves_work(books: Books, change: ObjectChange) -> bool:
    """Say whether running tasks would find themselves elsewhere, or under another engine."""
    before = books.declared.get((change.kind, change.name))
    if before is None:
        return False
    if isinstance(before.value, Zone) and isinstance(change.value, Zone):
        return before.value.site != change.value.site
    return isinstance(change.value, Pool) and before.value != change.value


def _users(books: Books, kind: ObjectKind, name: str) -> Iterator[str]:
    """Yield live workloads that stand on an object; references are checked elsewhere."""
    schedule = books.schedule
    for row in schedule.workloads.values():
        if row.state in FINAL_WORKLOAD_STATES:
            continue
        owner = row.submission
        if (kind, name) in {
            (ObjectKind.PROJECT, owner.project),
            (ObjectKind.ORGANISATION, owner.organisation),
        }:
            yield owner.id
    if kind in (ObjectKind.POOL, ObjectKind.ZONE, ObjectKind.SITE):
        for step, node in live_steps(schedule):
            site = schedule.site_of_node(node)
            here = {
                ObjectKind.POOL: pool_of(schedule, node),
                ObjectKind.ZONE: schedule.zone_of_node(node),
                ObjectKind.SITE: site.name if site else "",
            }
            if here[kind] == name:
                yield step


def _check_pools(plane: Plane, after: Objects, changes: tuple[ObjectChange, ...]) -> None:
    """Have new pools looked at by those who know engines: each alone, then all together."""
    new = [change.value for change in changes if isinstance(change.value, Pool)]
    for pool in new:
        plane.ports.engine_for(pool)
    if new:
        plane.ports.check_pools(
            [item.value for _, item in sorted(after.items()) if isinstance(item.value, Pool)]
        )


def _diff(before: Objects, change: ObjectChange) -> ObjectDiff:
    old = before.get((change.kind, change.name))
    action = "delete" if change.value is None else "update" if old else "create"
    return ObjectDiff(
        action=action,
        kind=change.kind,
        name=change.name,
        before=encode(old.value) if old else {},
        after=encode(change.value) if change.value is not None else {},
    )
