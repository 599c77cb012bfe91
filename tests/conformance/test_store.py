"""One suite for every store: what the control plane may rely on, on memory, SQLite and PostgreSQL."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from moulin.domain.errors import (
    AlreadyExists,
    StaleGeneration,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
)
from moulin.ports.store import Batch, DeclaredRef, Store, WorkloadFilter
from moulin.store.memory import MemoryDisk, MemoryStore
from moulin.store.opening import open_store
from tests.conformance import store_samples as sample

STORES = ("memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres))


class Place:
    """Where stores of one test live; each `open` is another process's view of it.

    `depose` takes the lead away from whoever has it, without telling.
    """

    def __init__(self, open_another: Callable[[], Store], depose: Callable[[], object]) -> None:
        self._open_another = open_another
        self.depose = depose
        self.opened: list[Store] = []

    def open(self) -> Store:
        self.opened.append(self._open_another())
        return self.opened[-1]

    def lead(self) -> tuple[Store, int]:
        store = self.open()
        return store, store.open_epoch()


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "memory":
        disk = MemoryDisk()
        made = Place(lambda: MemoryStore(disk), lambda: setattr(disk, "leader", None))
    elif request.param == "sqlite":
        path = tmp_path / "log.db"
        made = Place(lambda: open_store(f"sqlite:///{path}"), Path(f"{path}.lead").unlink)
    else:
        server = request.getfixturevalue("postgres_server")
        url = server.new_schema_url()
        made = Place(lambda: open_store(url), server.end_sessions)
    yield made
    for store in made.opened:
        store.close()


def test_a_new_store_is_empty(place):
    store = place.open()
    assert store.last_sequence() == 0
    assert list(store.events(0)) == []
    assert store.workload("job_1") is None
    assert store.receipt("rct_1") is None
    assert store.checkpoint("factory/1") is None
    assert store.idempotency("lab", "k") is None
    assert store.account_totals() == {}
    assert list(store.leaves("factory/1", 0, 10)) == []


def test_epochs_rise_over_every_lead(place):
    store, first = place.lead()
    store.close()
    store, second = place.lead()
    store.close()
    assert second > first >= 1
    assert place.lead()[1] > second


def test_two_cannot_lead(place):
    _, epoch = place.lead()
    other = place.open()
    with pytest.raises(StoreUnavailable, match=f"another process leads.*epoch {epoch}"):
        other.open_epoch()
    with pytest.raises(StaleGeneration):
        other.commit(Batch(epoch=epoch, events=(sample.opened(1, epoch),)))
    assert other.last_sequence() == 0


def test_the_lead_passes_on_when_its_holder_closes(place):
    store, epoch = place.lead()
    other = place.open()
    store.close()
    assert other.open_epoch() == epoch + 1


def test_taking_the_lead_again_fences_the_epoch_before(place):
    store, old = place.lead()
    new = store.open_epoch()
    with pytest.raises(StaleGeneration):
        store.commit(Batch(epoch=old, events=(sample.opened(1, old),)))
    store.commit(Batch(epoch=new, events=(sample.opened(1, new),)))
    assert store.last_sequence() == 1


def test_a_leader_deposed_without_a_word_is_fenced(place):
    former, old = place.lead()
    former.commit(Batch(epoch=old, events=(sample.opened(1, old),)))
    place.depose()
    present, new = place.lead()
    late = Batch(epoch=old, events=(sample.opened(2, old),), workloads=(sample.workload(1),))
    with pytest.raises((StaleGeneration, StoreUnavailable)):
        former.commit(late)
    present.commit(Batch(epoch=new, events=(sample.opened(2, new),)))
    with pytest.raises(StaleGeneration):
        former.commit(late)
    assert [event.epoch for event in former.events(0)] == [old, new]
    assert former.workload(sample.job_id(1)) is None


def test_readers_in_other_threads_see_whole_batches_only(place):
    store, epoch = place.lead()
    batches, jobs = 30, 5
    is_done = threading.Event()

    def read() -> int:
        seen = 0
        is_last = False
        while not is_last:
            is_last = is_done.is_set()
            leaves = len(store.leaves("factory/1", 0, 10**6))
            events = [event.sequence for event in store.events(0)]
            assert events == list(range(1, len(events) + 1))
            assert seen <= leaves <= len(events)
            assert leaves % jobs == len(events) % jobs == 0
            seen = len(events)
        return seen

    with ThreadPoolExecutor(max_workers=3) as readers:
        found = [readers.submit(read) for _ in range(3)]
        try:
            for number in range(batches):
                store.commit(sample.job_batch(epoch, number * jobs + 1, jobs))
        finally:
            is_done.set()
        assert [each.result() for each in found] == [batches * jobs] * 3


def test_events_come_back_as_they_were(place):
    store, epoch = place.lead()
    events = (
        sample.opened(1, epoch),
        sample.applied(2, epoch),
        sample.submitted(3, epoch, 1),
        sample.finished(4, epoch, 1),
    )
    store.commit(Batch(epoch=epoch, events=events[:3]))
    store.commit(Batch(epoch=epoch, events=events[3:]))
    assert tuple(store.events(0)) == events
    assert tuple(place.open().events(0)) == events
    assert store.last_sequence() == 4


def test_events_are_read_from_a_place_up_to_a_limit_for_one_project(place):
    store, epoch = place.lead()
    events = tuple(
        sample.submitted(number, epoch, number, project="lab" if number % 3 else "other")
        for number in range(1, 10)
    )
    store.commit(Batch(epoch=epoch, events=events))
    assert [event.sequence for event in store.events(7)] == [8, 9]
    assert [event.sequence for event in store.events(2, limit=3)] == [3, 4, 5]
    assert [event.sequence for event in store.events(0, project="other")] == [3, 6, 9]
    assert [event.sequence for event in store.events(3, limit=1, project="other")] == [6]
    assert list(store.events(9)) == []


def test_a_log_longer_than_a_page_is_read_whole(place):
    store, epoch = place.lead()
    count = 4_500
    store.commit(
        Batch(epoch=epoch, events=tuple(sample.finished(n, epoch, 1) for n in range(1, count + 1)))
    )
    assert [event.sequence for event in store.events(0)] == list(range(1, count + 1))
    assert [event.sequence for event in store.events(10, limit=3_000)] == list(range(11, 3_011))


@pytest.mark.parametrize("sequences", [(2,), (1, 3), (1, 1), (0,)], ids=str)
def test_events_that_do_not_continue_the_log_write_nothing(place, sequences):
    store, epoch = place.lead()
    events = tuple(sample.opened(sequence, epoch) for sequence in sequences)
    with pytest.raises(StoreCorrupt) as caught:
        store.commit(Batch(epoch=epoch, events=events, workloads=(sample.workload(1),)))
    assert caught.value.hint
    assert store.last_sequence() == 0
    assert store.workload(sample.job_id(1)) is None
    store.commit(Batch(epoch=epoch, events=(sample.opened(1, epoch),)))


def test_an_event_of_another_epoch_is_not_written(place):
    store, epoch = place.lead()
    with pytest.raises(StoreCorrupt, match="epoch"):
        store.commit(Batch(epoch=epoch, events=(sample.opened(1, epoch + 1),)))
    assert store.last_sequence() == 0


def test_a_workload_row_is_replaced(place):
    store, epoch = place.lead()
    store.commit(Batch(epoch=epoch, workloads=(sample.workload(1), sample.workload(2))))
    ended = sample.workload(1, state="succeeded", ended_at_ns=5, sequence=9, units=())
    store.commit(Batch(epoch=epoch, workloads=(ended,)))
    assert store.workload(sample.job_id(1)) == ended
    assert store.workload(sample.job_id(2)) == sample.workload(2)


def test_of_two_rows_of_one_id_in_a_batch_the_last_stays(place):
    store, epoch = place.lead()
    last = sample.workload(1, state="failed")
    store.commit(Batch(epoch=epoch, workloads=(sample.workload(1), last)))
    assert store.workload(sample.job_id(1)) == last


def _filtered(store: Store, **wanted: Any) -> list[int]:
    numbers = {str(sample.job_id(number)): number for number in range(1, 8)}
    return [numbers[row.id] for row in store.workloads(WorkloadFilter(**wanted))]


def test_workloads_are_listed_newest_first_by_what_is_wanted(place):
    store, epoch = place.lead()
    same_time = {"submitted_at_ns": sample.START_NS + 3}
    rows = (
        sample.workload(1, project="other"),
        sample.workload(2, state="succeeded"),
        sample.workload(3, kind="lease"),
        sample.workload(4, name="Train", **same_time),
        sample.workload(5, spec=sample.spec(labels={"team": "A", 'q"]': "[%_"})),
        sample.workload(6, spec=sample.spec(labels={"team": "ab"})),
    )
    store.commit(Batch(epoch=epoch, workloads=rows))
    assert _filtered(store) == [6, 5, 4, 3, 2, 1]
    assert _filtered(store, limit=2) == [6, 5]
    assert _filtered(store, project="lab") == [6, 5, 4, 3, 2]
    assert _filtered(store, kind="lease") == [3]
    assert _filtered(store, states=("succeeded", "failed")) == [2]
    assert _filtered(store, name="Train") == [4]
    assert _filtered(store, label=("team", "a")) == [4, 3, 2, 1]
    assert _filtered(store, label=("team", "A")) == [5]
    assert _filtered(store, label=('q"]', "[%_")) == [5]
    assert _filtered(store, label=("team", "%")) == []
    assert _filtered(store, before=sample.job_id(4)) == [3, 2, 1]
    assert _filtered(store, before=sample.job_id(4), project="other") == [1]
    assert _filtered(store, before="job_unknown") == []


def test_declared_objects_are_set_replaced_and_removed(place):
    store, epoch = place.lead()
    store.commit(Batch(epoch=epoch, declared=(sample.declared("b"), sample.declared("a"))))
    newer = sample.declared("b", sequence=2)
    gone = DeclaredRef(kind="site", name="a")
    store.commit(
        Batch(epoch=epoch, declared=(newer, sample.declared("c")), undeclared=(gone, gone))
    )
    assert list(store.declared()) == [newer, sample.declared("c")]


def test_keys_are_listed_by_id_and_revoked(place):
    store, epoch = place.lead()
    keys = (sample.api_key("key_2"), sample.api_key("key_1", project="other"))
    store.commit(Batch(epoch=epoch, keys=keys))
    listed = store.keys()
    assert [key.id for key in listed] == ["key_1", "key_2"]
    assert list(store.keys(project="lab")) == [keys[0]]


def test_receipts_come_in_order_of_issue(place):
    store, epoch = place.lead()
    rows = [sample.receipt(number, workload=f"job_{number % 2}") for number in (3, 1, 2)]
    other = sample.receipt(9, project="other")
    store.commit(Batch(epoch=epoch, receipts=(*rows, other)))
    assert store.receipt("rct_1") == rows[1]
    assert list(store.receipts()) == [*rows, other]
    assert list(store.receipts(project="lab")) == rows
    assert list(store.receipts(workload="job_1")) == rows[:2]
    assert list(store.receipts(after="rct_3", limit=1)) == rows[1:2]
    assert list(store.receipts(after="rct_unknown")) == []


def test_a_receipt_rewritten_keeps_its_place(place):
    store, epoch = place.lead()
    store.commit(Batch(epoch=epoch, receipts=(sample.receipt(1), sample.receipt(2))))
    without_salt = sample.receipt(1, salt_hex="")
    store.commit(Batch(epoch=epoch, receipts=(without_salt,)))
    assert list(store.receipts()) == [without_salt, sample.receipt(2)]


def test_entries_come_in_order_of_posting_with_their_postings(place):
    store, epoch = place.lead()
    entries = [sample.entry(3, 5), sample.entry(1, 2**90), sample.entry(2, 7, project="other")]
    store.commit(Batch(epoch=epoch, entries=tuple(entries)))
    assert list(store.entries()) == entries
    assert list(store.entries(project="lab")) == entries[:2]
    assert list(store.entries(after="ent_3", limit=1)) == entries[1:2]
    assert list(store.entries(after="ent_unknown")) == []


def test_totals_are_exact_far_beyond_64_bits(place):
    store, epoch = place.lead()
    store.commit(Batch(epoch=epoch, entries=(sample.entry(1, 2**63), sample.entry(2, 2**63 + 1))))
    store.commit(Batch(epoch=epoch, entries=(sample.entry(3, 10**40, project="other"),)))
    assert store.account_totals("lab") == {
        "tenant:receivable": 2**64 + 1,
        "operator:revenue": -(2**64) - 1,
    }
    assert store.account_totals()["tenant:receivable"] == 2**64 + 1 + 10**40
    store.close()
    store, epoch = place.lead()
    store.commit(Batch(epoch=epoch, entries=(sample.entry(4, 1),)))
    assert store.account_totals("lab")["tenant:receivable"] == 2**64 + 2


def test_an_entry_is_posted_once(place):
    store, epoch = place.lead()
    store.commit(Batch(epoch=epoch, entries=(sample.entry(1, 5),)))
    again = Batch(
        epoch=epoch,
        events=(sample.opened(1, epoch),),
        entries=(sample.entry(2, 1), sample.entry(1, 5)),
    )
    with pytest.raises(AlreadyExists):
        store.commit(again)
    assert store.last_sequence() == 0
    assert store.account_totals()["tenant:receivable"] == 5
    assert [entry.id for entry in store.entries()] == ["ent_1"]
    store.commit(Batch(epoch=epoch, entries=(sample.entry(2, 1),)))
    assert store.account_totals()["tenant:receivable"] == 6


def test_leaves_continue_their_shard(place):
    store, epoch = place.lead()
    leaves = tuple(sample.leaf(index) for index in range(5))
    store.commit(Batch(epoch=epoch, leaves=(*leaves, sample.leaf(0, origin="factory/2"))))
    assert list(store.leaves("factory/1", 1, 4)) == [leaf.leaf_hash for leaf in leaves[1:4]]
    assert len(store.leaves("factory/1", 3, 100)) == 2
    for wrong in (4, 6):
        with pytest.raises(StoreCorrupt, match="leaf 5 of shard factory/1"):
            store.commit(Batch(epoch=epoch, leaves=(sample.leaf(wrong),)))
    store.close()
    store, epoch = place.lead()
    for origin in ("factory/1", "factory/2"):
        with pytest.raises(StoreCorrupt):
            store.commit(Batch(epoch=epoch, leaves=(sample.leaf(0, origin),)))
    store.commit(Batch(epoch=epoch, leaves=(sample.leaf(5), sample.leaf(1, "factory/2"))))
    assert len(store.leaves("factory/1", 0, 100)) == 6


def test_tree_nodes_are_kept_by_shard_level_and_index(place):
    store, epoch = place.lead()
    nodes = tuple(sample.tree_node(8, index) for index in range(300))
    others = (sample.tree_node(16, 0), sample.tree_node(8, 0, origin="factory/2"))
    leaves = tuple(sample.leaf(index) for index in range(3))
    store.commit(Batch(epoch=epoch, leaves=leaves, nodes=(*nodes, *others)))
    reader = place.open()
    assert list(reader.tree_hashes("factory/1", 8, 256, 512)) == [
        node.node_hash for node in nodes[256:]
    ]
    assert list(reader.tree_hashes("factory/1", 16, 0, 256)) == [others[0].node_hash]
    assert list(reader.tree_hashes("factory/2", 8, 0, 1)) == [others[1].node_hash]
    assert list(reader.tree_hashes("factory/2", 8, 1, 2)) == []
    assert list(reader.tree_hashes("factory/1", 0, 1, 9)) == list(reader.leaves("factory/1", 1, 9))


def test_a_tree_node_is_written_once_and_without_holes(place):
    store, epoch = place.lead()
    store.commit(Batch(epoch=epoch, nodes=(sample.tree_node(8, 0),)))
    with pytest.raises(AlreadyExists):
        store.commit(Batch(epoch=epoch, nodes=(sample.tree_node(8, 1), sample.tree_node(8, 0))))
    assert len(store.tree_hashes("factory/1", 8, 0, 9)) == 1
    store.commit(Batch(epoch=epoch, nodes=(sample.tree_node(8, 2),)))
    with pytest.raises(StoreCorrupt, match="node 1 at level 8 of shard factory/1"):
        store.tree_hashes("factory/1", 8, 0, 9)


def test_the_shards_with_a_checkpoint_are_listed(place):
    store, epoch = place.lead()
    assert list(store.origins()) == []
    found = [sample.checkpoint(size, name) for size in (1, 2) for name in ("b/1", "a/é", "B/1")]
    store.commit(Batch(epoch=epoch, checkpoints=tuple(found)))
    assert list(store.origins()) == ["B/1", "a/é", "b/1"]


def test_the_newest_checkpoint_is_the_one_of_the_largest_tree(place):
    store, epoch = place.lead()
    checkpoints = tuple(sample.checkpoint(size) for size in (2, 10, 9))
    store.commit(Batch(epoch=epoch, checkpoints=checkpoints))
    assert store.checkpoint("factory/1") == checkpoints[1]
    assert store.checkpoint("factory/2") is None


def test_intervals_come_in_order_of_start(place):
    store, epoch = place.lead()
    rows = (sample.interval("b", 0), sample.interval("a", 1), sample.interval("a", 0))
    store.commit(Batch(epoch=epoch, intervals=rows))
    assert list(store.intervals()) == [rows[2], rows[0], rows[1]]
    assert list(store.intervals(node="a", limit=1)) == [rows[2]]
    assert list(store.intervals(start_ns=rows[1].start_ns)) == [rows[1]]
    corrected = sample.interval("b", 0, energy_mj=1)
    store.commit(Batch(epoch=epoch, intervals=(corrected,)))
    assert list(store.intervals(node="b")) == [corrected]


def test_an_idempotency_record_is_found_in_its_project_only(place):
    store, epoch = place.lead()
    store.commit(Batch(epoch=epoch, idempotency=(sample.record("k"),)))
    assert store.idempotency("lab", "k") == sample.record("k")
    assert store.idempotency("other", "k") is None


def test_a_whole_batch_is_seen_by_another_process_at_once(place):
    store, epoch = place.lead()
    reader = place.open()
    store.commit(sample.job_batch(epoch, 1, 20))
    assert reader.last_sequence() == 20
    assert len(reader.workloads(WorkloadFilter())) == len(reader.receipts()) == 20
    assert len(reader.entries()) == len(reader.leaves("factory/1", 0, 99)) == 20
    assert reader.account_totals()["tenant:receivable"] == 210


def test_a_closed_store_is_fenced(place):
    store, epoch = place.lead()
    store.close()
    with pytest.raises((StaleGeneration, StoreError)):
        store.commit(Batch(epoch=epoch, events=(sample.opened(1, epoch),)))
    assert place.open().last_sequence() == 0
