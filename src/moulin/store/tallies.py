"""What the leader remembers of what is stored, and whether a batch continues it.

It decides if a batch may be written at all: events and leaves without a gap, under the lead's
epoch. It computes running totals as Python integers. It never reads or writes anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moulin.domain.errors import StoreCorrupt
from moulin.ports.store import Batch

AccountKey = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountTotal:
    """Debit minus credit of one account of one project."""

    organisation: str
    total_neur: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tallies:
    """The end of the log, the running totals and the next leaf of each shard.

    `accounts` is keyed by (project, account). The mappings belong to the lead and grow in place
    when a batch is known to be written (`settle`).
    """

    last_sequence: int = 0
    accounts: dict[AccountKey, AccountTotal] = field(default_factory=dict)
    leaf_counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What one batch changes in the tallies."""

    before: int
    after: int
    accounts: Mapping[AccountKey, AccountTotal]
    leaf_counts: Mapping[str, int]


def advance(tallies: Tallies, batch: Batch) -> Advance:
    """Return what writing `batch` changes.

    Raises `StoreCorrupt` when its events or leaves do not continue what is stored, or an event
    carries another epoch than the batch.
    """
    return Advance(
        before=tallies.last_sequence,
        after=_sequence_after(tallies.last_sequence, batch),
        accounts=_accounts_after(tallies.accounts, batch),
        leaf_counts=_leaf_counts_after(tallies.leaf_counts, batch),
    )


def settle(tallies: Tallies, change: Advance) -> Tallies:
    """Return the tallies after a written batch; the old value must not be used any more."""
    tallies.accounts.update(change.accounts)
    tallies.leaf_counts.update(change.leaf_counts)
    return replace(tallies, last_sequence=change.after)


def log_gap(expected: int, found: int) -> StoreCorrupt:
    """Return the error for an event that does not follow the one before."""
    return StoreCorrupt(
        f"event {expected} was expected next and {found} was found",
        hint="the log has a gap or two writers: stop, keep a copy, restore the last backup",
        details={"expected": expected, "found": found},
    )


def leaf_gap(origin: str, expected: int, found: int, level: int = 0) -> StoreCorrupt:
    """Return the error for a leaf, or an inner node, that does not follow the one before."""
    what = f"node {expected} at level {level}" if level else f"leaf {expected}"
    return StoreCorrupt(
        f"{what} of shard {origin} was expected next and {found} was found",
        hint="the evidence log must have no holes: stop, keep a copy, restore the last backup",
        details={"origin": origin, "expected": expected, "found": found},
    )


def _sequence_after(last: int, batch: Batch) -> int:
    for event in batch.events:
        if event.sequence != last + 1:
            raise log_gap(last + 1, event.sequence)
        if event.epoch != batch.epoch:
            raise StoreCorrupt(
                f"event {event.sequence} carries epoch {event.epoch} in a batch of {batch.epoch}",
                hint="events must be made under the epoch they are written with",
            )
        last = event.sequence
    return last


def _accounts_after(
    accounts: Mapping[AccountKey, AccountTotal], batch: Batch
) -> dict[AccountKey, AccountTotal]:
    changed: dict[AccountKey, AccountTotal] = {}
    for entry in batch.entries:
        for posting in entry.postings:
            key = (entry.project, posting.account)
            known = changed.get(key) or accounts.get(key)
            before = known.total_neur if known else 0
            changed[key] = AccountTotal(
                organisation=entry.organisation,
                total_neur=before + posting.debit_neur - posting.credit_neur,
            )
    return changed


def _leaf_counts_after(leaf_counts: Mapping[str, int], batch: Batch) -> dict[str, int]:
    changed: dict[str, int] = {}
    for leaf in batch.leaves:
        expected = changed.get(leaf.origin, leaf_counts.get(leaf.origin, 0))
        if leaf.index != expected:
            raise leaf_gap(leaf.origin, expected, leaf.index)
        changed[leaf.origin] = expected + 1
    return changed
