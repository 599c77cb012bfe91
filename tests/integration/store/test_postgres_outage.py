"""PostgreSQL goes away at bad moments: nothing is guessed, nothing is written twice or lost."""

from collections.abc import Iterator

import pytest

from moulin.domain.errors import InvalidRequest, StaleGeneration, StoreUnavailable
from moulin.ports.store import Batch
from moulin.store.opening import open_store
from tests.conformance import store_samples as sample
from tests.integration.store.cutting_proxy import Cut, CuttingProxy
from tests.postgres_server import PostgresServer, free_port

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.new_schema_url()


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[CuttingProxy]:
    made = CuttingProxy(postgres_server.port)
    yield made
    made.join()


def through(url: str, proxy: CuttingProxy, server: PostgresServer) -> str:
    return url.replace(f":{server.port}/", f":{proxy.port}/")


def batch(epoch: int, sequence: int) -> Batch:
    return sample.job_batch(epoch, sequence, 1)


def test_a_lost_session_fails_one_commit_and_the_next_goes_on(url, postgres_server):
    with open_store(url) as store:
        epoch = store.open_epoch()
        store.commit(batch(epoch, 1))
        postgres_server.end_sessions()
        with pytest.raises(StoreUnavailable) as caught:
            store.commit(batch(epoch, 2))
        assert caught.value.hint
        store.commit(batch(epoch, 2))
        assert [event.sequence for event in store.events(0)] == [1, 2]


def test_a_restarted_server_is_found_again(url, postgres_server):
    with open_store(url) as store:
        epoch = store.open_epoch()
        store.commit(batch(epoch, 1))
        postgres_server.stop()
        try:
            with pytest.raises(StoreUnavailable):
                store.commit(batch(epoch, 2))
            with pytest.raises(StoreUnavailable):
                store.last_sequence()
            with pytest.raises(StoreUnavailable):
                open_store(url)
        finally:
            postgres_server.start()
        assert store.last_sequence() == 1
        store.commit(batch(epoch, 2))
        assert store.last_sequence() == 2


def test_who_lost_the_lead_with_its_session_is_fenced(url, postgres_server):
    with open_store(url) as former, open_store(url) as present:
        old = former.open_epoch()
        former.commit(batch(old, 1))
        postgres_server.end_sessions()
        new = present.open_epoch()
        for _ in range(2):
            with pytest.raises((StaleGeneration, StoreUnavailable)):
                former.commit(batch(old, 2))
        present.commit(batch(new, 2))
        with pytest.raises(StaleGeneration, match=f"epoch {new}"):
            former.commit(batch(old, 2))
        assert [event.epoch for event in present.events(0)] == [old, new]


def test_the_epoch_fences_even_a_session_that_never_ended(url, postgres_server):
    with open_store(url) as store:
        epoch = store.open_epoch()
        schema = url.rpartition("%3D")[2]
        postgres_server.execute(f"UPDATE {schema}.meta SET epoch = epoch + 1, holder = 'other'")
        with pytest.raises(StaleGeneration, match="other"):
            store.commit(batch(epoch, 1))
        assert store.last_sequence() == 0


def test_a_commit_the_server_never_heard_of_is_not_written(url, proxy, postgres_server):
    with open_store(through(url, proxy, postgres_server)) as store:
        epoch = store.open_epoch()
        proxy.cut = Cut.BEFORE_COMMIT_ARRIVES
        with pytest.raises(StoreUnavailable):
            store.commit(batch(epoch, 1))
        assert store.last_sequence() == 0
        store.commit(batch(epoch, 1))
        assert store.last_sequence() == 1


def test_a_commit_whose_answer_is_lost_is_found_written(url, proxy, postgres_server):
    with open_store(through(url, proxy, postgres_server)) as store:
        epoch = store.open_epoch()
        proxy.cut = Cut.BEFORE_ANSWER_ARRIVES
        store.commit(batch(epoch, 1))
        store.commit(batch(epoch, 2))
        assert [event.sequence for event in store.events(0)] == [1, 2]
        assert store.account_totals()["tenant:receivable"] == 3


@pytest.mark.parametrize(
    ("cut", "written"), [(Cut.BEFORE_COMMIT_ARRIVES, 0), (Cut.BEFORE_ANSWER_ARRIVES, 1)]
)
def test_an_outcome_that_cannot_be_known_costs_the_lead(url, proxy, postgres_server, cut, written):
    with open_store(through(url, proxy, postgres_server)) as store:
        epoch = store.open_epoch()
        proxy.cut, proxy.goes_down_with_cut = cut, True
        with pytest.raises(StoreUnavailable, match="not known yet") as caught:
            store.commit(batch(epoch, 1))
        assert caught.value.details["outcome"] == "unknown"
        with pytest.raises(StaleGeneration):
            store.commit(batch(epoch, 1))
    with open_store(url) as store:
        epoch = store.open_epoch()
        assert store.last_sequence() == written
        store.commit(batch(epoch, written + 1))


def test_a_server_that_is_not_there_is_told_without_the_password():
    port = free_port()
    with pytest.raises(StoreUnavailable) as caught:
        open_store(f"postgresql://moulin:hidden-word@127.0.0.1:{port}/postgres")
    assert "hidden-word" not in caught.value.message
    assert str(port) in caught.value.message


def test_text_with_nul_is_refused_and_nothing_is_written(url):
    with open_store(url) as store:
        epoch = store.open_epoch()
        with pytest.raises(InvalidRequest):
            store.commit(Batch(epoch=epoch, workloads=(sample.workload(1, name="a\0b"),)))
        store.commit(batch(epoch, 1))
        assert store.last_sequence() == 1
