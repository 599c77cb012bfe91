"""What becomes of issued keys: replaced with an overlap, restricted, limited, let expire."""

from collections.abc import Callable
from dataclasses import replace

from moulin.controlplane.commands import Answer, RotateKey, UpdateKey
from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.domain.control import KeyChange
from moulin.domain.errors import Conflict, NotFound
from moulin.domain.events import KeyCreated, KeyUpdated
from moulin.domain.principal import ApiKey


def rotate_key(plane: Plane, draft: Draft, command: RotateKey) -> Callable[[], Answer]:
    """Draft a successor with all that the key had, and the time from which only it is valid.

    Raises `NotFound`, and `Conflict` for a key that is revoked or has expired.
    """
    old = _valid(draft, command.key, "rotate")
    until_ns = max(command.old_until_ns, draft.now_ns)
    if old.expires_at_ns:
        until_ns = min(until_ns, old.expires_at_ns)
    new = replace(
        old,
        id=command.id,
        digest=command.digest,
        created_at_ns=draft.now_ns,
        expires_at_ns=command.expires_at_ns,
        origin=old.line,
    )
    actor = command.principal.key
    draft.append(KeyCreated(key=new), actor=actor, project=old.project)
    draft.append(
        KeyUpdated(key=replace(old, expires_at_ns=until_ns)), actor=actor, project=old.project
    )

    def finish() -> Answer:
        return new

    return finish


def update_key(plane: Plane, draft: Draft, command: UpdateKey) -> Callable[[], Answer]:
    """Draft the key with what was given changed.

    Raises `NotFound`, and `Conflict` for a key that is revoked or has expired.
    """
    found = _valid(draft, command.key, "change")
    changed = changed_key(found, command.change)
    if changed != found:
        draft.append(KeyUpdated(key=changed), actor=command.principal.key, project=found.project)

    def finish() -> Answer:
        return draft.books.keyring.by_id[command.key]

    return finish


def changed_key(key: ApiKey, change: KeyChange) -> ApiKey:
    """Return the key with what the change gives."""
    return replace(
        key,
        expires_at_ns=0 if change.never_expires else change.expires_at_ns or key.expires_at_ns,
        models=key.models if change.models is None else change.models,
        countries=key.countries if change.countries is None else change.countries,
        labels=key.labels if change.labels is None else change.labels,
        rate=change.rate or key.rate,
        allowance=change.allowance or key.allowance,
        per_user=change.per_user or key.per_user,
    )


def _valid(draft: Draft, key: str, doing: str) -> ApiKey:
    found = draft.books.keyring.by_id.get(key)
    if found is None:
        raise NotFound(f"{doing} {key}: there is no such key")
    if found.revoked_at_ns:
        raise Conflict(f"{doing} {key}: it is revoked", hint="create another key")
    if found.expires_at_ns and found.expires_at_ns <= draft.now_ns:
        raise Conflict(f"{doing} {key}: it has expired", hint="create another key")
    return found
