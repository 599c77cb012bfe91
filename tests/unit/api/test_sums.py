"""Sums of usage: exact, by project and workload, each receipt once."""

from dataclasses import replace

from moulin.api import sums
from moulin.api.sums import PAGE, UsageSums
from moulin.domain.ids import make_id
from moulin.ports.store import Batch
from moulin.store.memory import MemoryStore
from tests.integration.api.world import receipt_view


def store_with(count: int, store: MemoryStore | None = None, start: int = 0) -> MemoryStore:
    store = store or MemoryStore()
    epoch = store.open_epoch()
    receipts = tuple(
        receipt_view(
            make_id("rcp", 0, number), ("alpha", "beta")[number % 2], f"job_{number % 3}", number
        )
        for number in range(start, start + count)
    )
    store.commit(Batch(epoch=epoch, receipts=receipts))
    return store


def test_sums_are_exact_beyond_64_bits_and_cover_every_page():
    count = PAGE + 7
    items, through = UsageSums(store_with(count)).read()
    assert sum(item.receipts for item in items) == count
    assert sum(item.energy_mj for item in items) == count * 2**65
    assert sum(item.quantities["tokens_output"] for item in items) == sum(range(count))
    assert through == make_id("rcp", 0, count - 1)
    assert [(item.project, item.workload) for item in items] == sorted(
        (item.project, item.workload) for item in items
    )


def test_a_project_is_summed_alone():
    items, _ = UsageSums(store_with(6)).read("alpha")
    assert {item.project for item in items} == {"alpha"}
    assert sum(item.receipts for item in items) == 3


def test_reading_again_counts_only_what_is_new():
    store = store_with(4)
    sums = UsageSums(store)
    first = sums.read()
    assert sums.read() == first
    store_with(2, store, start=4)
    items, through = sums.read()
    assert sum(item.receipts for item in items) == 6
    assert through == make_id("rcp", 0, 5)


def test_users_are_summed_and_from_some_number_on_together(monkeypatch):
    store = MemoryStore()
    epoch = store.open_epoch()
    receipts = []
    for number, user in enumerate(["ada", "grace", "ada", "", "linus", "ken"]):
        view = receipt_view(make_id("rcp", 0, number), "alpha", "job_1", number)
        receipts.append(replace(view, usage=replace(view.usage, user=user)))
    store.commit(Batch(epoch=epoch, receipts=tuple(receipts)))
    monkeypatch.setattr(sums, "USERS_SUMMED_MAX", 2)
    found = {item.name: item.receipts for item in UsageSums(store).spent("user")}
    assert found == {"ada": 2, "grace": 1, "usr_others": 2}
