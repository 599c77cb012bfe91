"""How values become rows and rows become values, one pair of functions per table.

A row is a tuple in the order of the table's columns (`position`, which the database gives,
apart). Nothing here talks to a database. What cannot be read back is `StoreCorrupt`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson

from moulin.domain.errors import InvalidRequest, InvalidSpec, StoreCorrupt
from moulin.domain.event_wire import decode_payload, encode_payload
from moulin.domain.events import SCHEMA_VERSION, Event, FactoryApplied, Payload
from moulin.domain.ids import OrganisationId, ProjectId
from moulin.domain.principal import ApiKey
from moulin.domain.usage import Entry, Posting
from moulin.domain.views import (
    DeclaredView,
    IdempotencyRecord,
    NodeIntervalView,
    ReceiptView,
    WorkloadView,
)
from moulin.domain.wire import decode, encode
from moulin.ports.store import Batch, Checkpoint, Leaf, TreeNode

T = TypeVar("T")
Values = tuple[Any, ...]

RESTORE_HINT: Final = (
    "Moulin stops rather than guess: restore the last backup into a new data directory"
)
_NO_LABELS: Final = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """Rows of one statement (a table's name, or its name and `.delete`), in order."""

    statement: str
    rows: Sequence[Values]


def batch_rows(batch: Batch) -> list[RowGroup]:
    """Return what a batch writes, deletes before upserts, parents before children.

    Raises `InvalidRequest` for text that has no UTF-8 form. Running totals are not here: they
    depend on what is stored (see `tallies`).
    """
    groups = (
        RowGroup(statement="events", rows=[event_row(each) for each in batch.events]),
        RowGroup(statement="workloads", rows=[workload_row(each) for each in batch.workloads]),
        RowGroup(
            statement="declared.delete", rows=[(each.kind, each.name) for each in batch.undeclared]
        ),
        RowGroup(statement="declared", rows=[declared_row(each) for each in batch.declared]),
        RowGroup(statement="keys", rows=[key_row(each) for each in batch.keys]),
        RowGroup(statement="receipts", rows=[receipt_row(each) for each in batch.receipts]),
        RowGroup(statement="entries", rows=[entry_row(each) for each in batch.entries]),
        RowGroup(
            statement="postings", rows=[row for each in batch.entries for row in posting_rows(each)]
        ),
        RowGroup(statement="leaves", rows=[leaf_row(each) for each in batch.leaves]),
        RowGroup(statement="nodes", rows=[node_row(each) for each in batch.nodes]),
        RowGroup(
            statement="checkpoints", rows=[checkpoint_row(each) for each in batch.checkpoints]
        ),
        RowGroup(statement="intervals", rows=[interval_row(each) for each in batch.intervals]),
        RowGroup(
            statement="idempotency", rows=[idempotency_row(each) for each in batch.idempotency]
        ),
    )
    return [group for group in groups if group.rows]


def event_row(event: Event) -> Values:
    """Return an event's row."""
    return (
        event.sequence,
        event.schema,
        event.epoch,
        event.at_ns,
        event.kind,
        event.actor,
        event.organisation,
        event.project,
        event.site,
        event.causation,
        _json(event.labels) if event.labels else _NO_LABELS,
        _payload(event.payload),
    )


def event_of(row: Sequence[Any]) -> Event:
    """Return a row's event, its payload in the present shape. Raises `StoreCorrupt`."""
    sequence, schema, epoch, at_ns, kind, actor, organisation, project, site = row[:9]
    causation, labels, payload = row[9:]
    what = f"event {sequence}"
    return Event(
        sequence=sequence,
        epoch=epoch,
        at_ns=at_ns,
        actor=actor,
        payload=decode_payload(kind, schema, _parsed(payload, what), sequence=sequence),
        organisation=organisation,
        project=project,
        site=site,
        causation=causation,
        schema=SCHEMA_VERSION,
        labels={} if labels == _NO_LABELS else _parsed(labels, what),
    )


def workload_row(view: WorkloadView) -> Values:
    """Return a workload's row."""
    return (
        view.id,
        view.organisation,
        view.project,
        view.kind,
        view.name,
        view.state,
        view.submitted_at_ns,
        label_text(view.spec.labels),
        view.sequence,
        _body(view),
    )


def label_text(labels: Mapping[str, str]) -> str:
    """Return labels in a form in which one label is found as a piece of text (`label_mark`)."""
    return "".join(label_mark(name, value) for name, value in labels.items())


def label_mark(name: str, value: str) -> str:
    r"""Return the piece of text one label makes; JSON's own quoting keeps pieces apart.

    >>> label_mark("team", "a")
    '["team","a"]\n'
    """
    return _json([name, value]) + "\n"


def declared_row(view: DeclaredView) -> Values:
    """Return a declared object's row."""
    return (
        view.kind,
        view.name,
        view.organisation,
        view.managed_by,
        view.sequence,
        _body(view),
    )


def key_row(key: ApiKey) -> Values:
    """Return a key's row."""
    return (key.id, key.organisation, key.project, _body(key))


def receipt_row(view: ReceiptView) -> Values:
    """Return a receipt's row."""
    return (
        view.id,
        view.organisation,
        view.project,
        view.usage.workload,
        view.issued_at_ns,
        _body(view),
    )


def entry_row(entry: Entry) -> Values:
    """Return an entry's row, without its postings."""
    return (
        entry.id,
        entry.at_ns,
        entry.organisation,
        entry.project,
        entry.cause,
        _json(entry.labels) if entry.labels else _NO_LABELS,
    )


def posting_rows(entry: Entry) -> list[Values]:
    """Return the rows of an entry's postings; amounts are decimal text."""
    return [
        (
            entry.id,
            line,
            entry.organisation,
            entry.project,
            posting.account,
            str(posting.debit_neur),
            str(posting.credit_neur),
        )
        for line, posting in enumerate(entry.postings)
    ]


def entry_of(row: Sequence[Any], postings: Sequence[Sequence[Any]]) -> Entry:
    """Return an entry from its row and its postings' rows (account, debit, credit), by line."""
    entry, at_ns, organisation, project, cause, labels = row
    return Entry(
        id=entry,
        at_ns=at_ns,
        organisation=OrganisationId(organisation),
        project=ProjectId(project),
        cause=cause,
        postings=tuple(
            Posting(
                account=account,
                debit_neur=integer_of(debit, f"posting of entry {entry}"),
                credit_neur=integer_of(credit, f"posting of entry {entry}"),
            )
            for account, debit, credit in postings
        ),
        labels=_parsed(labels, f"entry {entry}"),
    )


def leaf_row(leaf: Leaf) -> Values:
    """Return a leaf's row."""
    return (leaf.origin, leaf.index, leaf.leaf_hash)


def node_row(node: TreeNode) -> Values:
    """Return a tree node's row."""
    return (node.origin, node.level, node.index, node.node_hash)


def checkpoint_row(checkpoint: Checkpoint) -> Values:
    """Return a checkpoint's row."""
    return (checkpoint.origin, checkpoint.tree_size, checkpoint.note, checkpoint.at_ns)


def interval_row(view: NodeIntervalView) -> Values:
    """Return a metered interval's row."""
    return (view.node, view.start_ns, view.end_ns, view.zone, view.site, _body(view))


def idempotency_row(record: IdempotencyRecord) -> Values:
    """Return an idempotency key's row."""
    return (
        record.project,
        record.key,
        record.organisation,
        record.body_hash,
        record.status,
        record.body,
        record.created_at_ns,
    )


def value_of(kind: type[T], body: str, name: str) -> T:
    """Return the value in a `body` column; `name` tells people which row it is.

    Raises `StoreCorrupt`.
    """
    what = f"{kind.__name__} {name}"
    try:
        return decode(kind, _parsed(body, what))
    except InvalidSpec as error:
        raise StoreCorrupt(f"read {what}: {error.message}", hint=RESTORE_HINT) from error


def integer_of(text: str, what: str) -> int:
    """Return a decimal text's integer. Raises `StoreCorrupt`."""
    try:
        return int(text)
    except ValueError as error:
        raise StoreCorrupt(f"read {what}: {text!r} is no integer", hint=RESTORE_HINT) from error


def _body(value: object) -> str:
    """Return a value as the JSON of a row.

    Written in one call where that is exact: integers of up to 64 bits as numbers, which the wire
    would write as text. Anything else takes its wire form; `decode` reads both.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        return _json(encode(value))


def _payload(payload: Payload) -> str:
    if isinstance(payload, FactoryApplied):
        return _json(encode_payload(payload))
    return _body(payload)


def _json(data: object) -> str:
    try:
        return orjson.dumps(data).decode()
    except TypeError as error:
        raise InvalidRequest(
            f"write to the store: {error}", hint="text must be valid Unicode"
        ) from error


def _parsed(text: str, what: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise StoreCorrupt(f"read {what}: {error}", hint=RESTORE_HINT) from error
