"""What a stand-in control plane keeps for tenants: one file, response and batch for each project."""

import hashlib
from pathlib import Path
from typing import Any

from moulin.controlplane import commands as c
from moulin.controlplane.shelf import Shelf
from moulin.domain.ids import KeyId, OrganisationId, ProjectId, make_id
from moulin.domain.objects import BatchJob, StoredKind, StoredObject
from moulin.store.folder import ObjectFolder

CONTENT = b'{"custom_id": "1", "body": {}}\n'
AT_NS = 1_790_000_000_000_000_000


class Keepsakes(ObjectFolder):
    """A folder whose deletions are only counted, so that any number of callers may delete."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.deleted: list[str] = []

    def delete(self, name: str) -> None:
        self.deleted.append(name)


class Desk:
    """Nobody carries anything out."""

    def __init__(self) -> None:
        self.woken = 0

    def progress(self, batch: BatchJob) -> BatchJob:
        return batch

    def wake(self) -> None:
        self.woken += 1


class Keeping:
    """Answers of the stand-in to commands on objects: nothing is ever gone."""

    def __init__(self, actors: list[str]) -> None:
        self.shelf = Shelf()
        self.actors = actors

    def put(self, stored: StoredObject) -> None:
        self.shelf.stored[stored.id] = stored
        if stored.kind is StoredKind.BUNDLE:
            self.shelf.bundles[stored.project, stored.sha256] = stored.id

    def answer(self, command: Any) -> StoredObject | BatchJob:
        self.actors.append(command.principal.key)
        match command:
            case c.StoreObject():
                self.put(command.object)
                return command.object
            case c.OpenBatch():
                return command.batch
            case c.CancelBatch():
                return self.shelf.batches[command.batch]
            case c.DeleteObject() if command.object in self.shelf.batches:
                return self.shelf.batches[command.object]
            case _:
                return self.shelf.stored[command.object]


def keep(keeping: Keeping, folder: Keepsakes, project: str, organisation: str) -> dict[str, str]:
    """Give a project one of each, and return their ids."""
    owner: dict[str, Any] = {
        "organisation": OrganisationId(organisation),
        "project": ProjectId(project),
        "key": KeyId("key_1"),
        "created_at_ns": AT_NS,
    }
    number = len(keeping.shelf.stored)
    ids = {
        "file": make_id("file", AT_NS, number),
        "response": make_id("resp", AT_NS, number),
        "bundle": make_id("bundle", AT_NS, number),
        "batch": make_id("batch", AT_NS, number),
    }
    for kind in StoredKind:
        size_bytes, sha256 = folder.put(ids[kind], (CONTENT,))
        keeping.put(
            StoredObject(
                id=ids[kind],
                kind=kind,
                name=f"{kind} of {project}",
                purpose="batch",
                size_bytes=size_bytes,
                sha256=sha256,
                expires_at_ns=0,
                **owner,
            )
        )
    keeping.shelf.batches[ids["batch"]] = BatchJob(
        id=ids["batch"],
        endpoint="/v1/chat/completions",
        input_files=(ids["file"],),
        deadline_at_ns=AT_NS,
        metadata={"of": project},
        **owner,
    )
    return {**ids, "digest": hashlib.sha256(CONTENT).hexdigest()}
