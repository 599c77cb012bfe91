"""What tenants keep, in events: a file, a batch over it that ends, one that is cancelled, deletions."""

from typing import Final

from moulin.domain.events import (
    BatchCancelled,
    BatchEnded,
    BatchOpened,
    ObjectDeleted,
    ObjectStored,
    Payload,
)
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.objects import BatchJob, BatchState, LineError, StoredKind, StoredObject

CREATED_NS: Final = 1_760_000_000_000_000_000
LATER_NS: Final = CREATED_NS + 86_400 * 10**9
INPUT: Final = "file_01K7000000000000000000000A"
OUTPUT: Final = "file_01K7000000000000000000000B"
ENDED: Final = "batch_01K7000000000000000000000C"
CANCELLED: Final = "batch_01K7000000000000000000000D"


def objects() -> list[Payload]:
    """A file's life, and two batches over it."""
    return [
        ObjectStored(object=stored(INPUT, "questions.jsonl", "batch", 4096)),
        ObjectStored(object=stored("resp_01K7000000000000000000000E", "", "", 900, is_file=False)),
        BatchOpened(batch=batch(ENDED)),
        ObjectStored(object=stored(OUTPUT, "output.jsonl", "batch_output", 8192)),
        BatchEnded(batch=batch(ENDED, state=BatchState.COMPLETED, lines=3, completed=3)),
        BatchOpened(batch=batch(CANCELLED)),
        BatchCancelled(batch=CANCELLED, by="ada"),
        BatchEnded(
            batch=batch(
                CANCELLED,
                state=BatchState.CANCELLED,
                errors=(LineError(line=2, code="invalid_json", message="line 2 is not JSON"),),
            )
        ),
        ObjectDeleted(object=INPUT, cause="deleted"),
        ObjectDeleted(object=ENDED, cause="expired"),
    ]


def stored(
    name: str, title: str, purpose: str, size_bytes: int, *, is_file: bool = True
) -> StoredObject:
    """Return an object of the project of the stories."""
    return StoredObject(
        id=name,
        kind=StoredKind.FILE if is_file else StoredKind.RESPONSE,
        organisation=OrganisationId("uni"),
        project=ProjectId("lab"),
        key=KeyId("key_member"),
        name=title,
        purpose=purpose,
        size_bytes=size_bytes,
        sha256="ab" * 32,
        created_at_ns=CREATED_NS,
        expires_at_ns=LATER_NS,
    )


def batch(
    name: str,
    *,
    state: BatchState = BatchState.RUNNING,
    lines: int = 0,
    completed: int = 0,
    errors: tuple[LineError, ...] = (),
) -> BatchJob:
    """Return a batch of the project of the stories."""
    return BatchJob(
        id=name,
        organisation=OrganisationId("uni"),
        project=ProjectId("lab"),
        key=KeyId("key_member"),
        endpoint="/v1/chat/completions",
        input_files=(INPUT,),
        created_at_ns=CREATED_NS,
        deadline_at_ns=LATER_NS,
        metadata={"run": "1"},
        state=state,
        lines=lines,
        completed=completed,
        output_file=OUTPUT if completed else "",
        errors=errors,
    )
