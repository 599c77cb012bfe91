"""The composition root on a real data directory: engines, key files and the first start."""

import json
from dataclasses import replace

import pytest

from moulin.app.clock import SystemClock, SystemDice
from moulin.app.control import SETUP, bootstrap, factory_settings, read_settings
from moulin.app.wiring.engines import EngineBook
from moulin.app.wiring.factory import Factory, FactorySettings, open_factory
from moulin.controlplane.commands import ApplyFactory
from moulin.controlplane.cycle import cycle
from moulin.domain.errors import EngineRefused, InvalidSpec, LocalError, NotFound
from moulin.domain.factory import Organisation, Pool, Project, Site, Zone, kind_of
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.principal import ApiKey, Role
from moulin.domain.wire import encode
from moulin.engines.local.engine import LocalEngine

POOL = Pool(
    name="floor",
    zone="east",
    engine="simulated",
    machine_class="simulated",
    settings={"nodes": "2", "cpus": "4"},
)
OBJECTS = (
    Organisation(name="lab"),
    Site(name="hill", country="FR"),
    Zone(name="east", site="hill"),
    POOL,
    Project(name="atelier", organisation="lab"),
)


def key(name, project=""):
    return ApiKey(
        id=KeyId(f"key_{name}"),
        name=name,
        role=Role.ADMIN if project else Role.OPERATOR,
        organisation=OrganisationId("lab" if project else ""),
        project=ProjectId(project),
        digest=f"digest of {name}",
    )


@pytest.fixture
def data(tmp_path):
    (tmp_path / "pepper").write_bytes(b"p" * 32)
    (tmp_path / "pepper").chmod(0o600)
    return tmp_path


KEYS = (key("operator"), key("first", "atelier"))


def key_ids(factory):
    return sorted(each.id for each in factory.plane.ports.store.keys(""))


def prepare(data, objects=OBJECTS, keys=KEYS):
    (data / "bootstrap.json").write_text(
        json.dumps(
            {
                "managed_by": "factory.yaml",
                "objects": [{"kind": kind_of(o).value, "body": encode(o)} for o in objects],
                "keys": [encode(k) for k in keys],
            }
        )
    )


@pytest.fixture
def opened(data):
    """Open factories over one data directory, one after another."""
    factories: list[Factory] = []

    def open_next():
        for former in factories:
            former.store.close()
        factories.append(open_factory(FactorySettings(data_dir=data, models_dir=data)))
        return factories[-1]

    yield open_next
    for factory in factories:
        factory.store.close()


# -- engines --------------------------------------------------------------------------------------


def test_a_pool_keeps_its_engine_until_its_settings_change(tmp_path):
    book = EngineBook(tmp_path, SystemClock())
    first = book.engine_for(POOL)
    assert book.engine_for(replace(POOL, zone="west")) is first
    other = book.engine_for(replace(POOL, settings={"nodes": "3"}))
    assert other is not first
    assert (len(first.capacity()), len(other.capacity())) == (2, 3)
    assert book.engine_for(POOL) is first


def test_this_machine_is_an_engine(tmp_path):
    book = EngineBook(tmp_path, SystemClock())
    engine = book.engine_for(replace(POOL, engine="local", settings={}))
    assert isinstance(engine, LocalEngine)
    [node] = engine.capacity()
    assert node.node.startswith("floor")
    assert node.cpu_milli >= 1000


@pytest.mark.parametrize(
    ("engine", "settings", "error", "words"),
    [
        ("magic", {}, EngineRefused, "magic"),
        ("simulated", {"nodes": "0"}, EngineRefused, "0 nodes"),
        ("simulated", {"nodes": "200001"}, EngineRefused, "200001"),
        ("simulated", {"nodes": "many"}, InvalidSpec, "nodes"),
        ("simulated", {"nodes": "-1"}, InvalidSpec, "nodes"),
        ("simulated", {"cpus": "1.5"}, InvalidSpec, "cpus"),
        ("simulated", {"memory_bytes": "9" * 40}, InvalidSpec, "memory_bytes"),
        ("local", {"nodes": "100000"}, InvalidSpec, "100000"),
    ],
)
def test_settings_no_engine_can_have_are_refused(tmp_path, engine, settings, error, words):
    book = EngineBook(tmp_path, SystemClock())
    with pytest.raises(error, match=words):
        book.engine_for(replace(POOL, engine=engine, settings=settings))


@pytest.mark.parametrize("is_dry_run", [True, False])
def test_no_two_pools_count_this_machine(opened, data, is_dry_run):
    here = replace(POOL, engine="local", settings={"nodes": "1"})
    prepare(data, objects=(*OBJECTS, replace(here, name="this-one")))
    factory = opened()
    bootstrap(factory, data)
    apply = ApplyFactory(
        principal=SETUP,
        managed_by="more.yaml",
        objects=(replace(here, name="again"), replace(here, name="another")),
        is_dry_run=is_dry_run,
    )
    asked = factory.services.call(apply)
    cycle(factory.plane, 0.0)
    with pytest.raises(InvalidSpec, match="again, another, this-one: engine local") as caught:
        asked.result(timeout=0)
    assert "`nodes` divides" in caught.value.hint
    assert [row.name for row in factory.store.declared() if row.kind == "pool"] == [
        "floor",
        "this-one",
    ]


def test_a_pool_of_this_machine_may_be_exchanged_for_another(opened, data):
    here = replace(POOL, engine="local", settings={"nodes": "1"})
    others = tuple(each for each in OBJECTS if each is not POOL)
    prepare(data, objects=(*others, here))
    factory = opened()
    bootstrap(factory, data)
    apply = ApplyFactory(
        principal=SETUP,
        managed_by="factory.yaml",
        objects=(*others, replace(here, name="other")),
    )
    asked = factory.services.call(apply)
    cycle(factory.plane, 0.0)
    assert [diff.action for diff in asked.result(timeout=0).diffs] == ["delete", "create"]


# -- key files ------------------------------------------------------------------------------------


def test_a_factory_without_its_pepper_does_not_open(tmp_path):
    with pytest.raises(LocalError, match="pepper"):
        open_factory(FactorySettings(data_dir=tmp_path))


@pytest.mark.parametrize(("content", "mode"), [(b"p" * 32, 0o644), (b"", 0o600)])
def test_a_pepper_that_others_read_is_none(data, content, mode):
    (data / "pepper").write_bytes(content)
    (data / "pepper").chmod(mode)
    with pytest.raises(LocalError, match="others"):
        open_factory(FactorySettings(data_dir=data))


def test_the_signing_key_is_made_once(opened, data):
    first = opened().plane.ports.signer.public_key
    assert opened().plane.ports.signer.public_key == first
    assert (data / "signing.key").stat().st_mode & 0o077 == 0


# -- first start ----------------------------------------------------------------------------------


def test_the_first_start_declares_the_factory_and_its_keys(opened, data):
    prepare(data)
    factory = opened()
    bootstrap(factory, data)
    assert factory.plane.books.project("atelier") is not None
    assert key_ids(factory) == ["key_first", "key_operator"]
    before = factory.store.last_sequence()
    bootstrap(factory, data)
    assert factory.store.last_sequence() == before
    again = opened()
    before = again.store.last_sequence()
    bootstrap(again, data)
    assert again.store.last_sequence() == before


def test_a_first_start_without_anything_prepared_is_an_empty_factory(opened, data):
    factory = opened()
    bootstrap(factory, data)
    assert not factory.store.keys()


def test_a_first_start_that_was_cut_short_is_continued(opened, data):
    prepare(data, keys=(key("operator"),))
    bootstrap(opened(), data)
    prepare(data)
    factory = opened()
    bootstrap(factory, data)
    assert key_ids(factory) == ["key_first", "key_operator"]


def test_a_first_start_that_cannot_be_carried_out_makes_no_keys(opened, data):
    prepare(data, objects=(*OBJECTS, replace(POOL, name="other", engine="magic")))
    factory = opened()
    with pytest.raises(EngineRefused, match="magic"):
        bootstrap(factory, data)
    assert not factory.store.keys()
    prepare(data)
    bootstrap(opened(), data)


def test_settings_are_read_or_empty(data):
    assert read_settings(data) == {}
    (data / "settings.json").write_text('{"factory_name": "mill", "metering_interval_s": 3}')
    settings = factory_settings(data, read_settings(data))
    assert (settings.factory_name, settings.plane.metering_interval_s) == ("mill", 3.0)
    (data / "settings.json").write_text("[]")
    assert read_settings(data) == {}


# -- the parts joined -----------------------------------------------------------------------------


def test_a_factory_runs_and_shows_a_tasks_log(opened, data):
    prepare(data)
    factory = opened()
    bootstrap(factory, data)
    cycle(factory.plane, 0.0)
    with pytest.raises(NotFound, match="not started"):
        factory.services.logs("job_nothing", 0, 0, 0, 100)
    assert [node.node for node in factory.plane.engines["floor"].capacity()] == [
        "floor-00000",
        "floor-00001",
    ]


def test_the_clock_goes_forward_and_the_dice_do_not_repeat():
    clock, dice = SystemClock(), SystemDice()
    times = [clock.now_ns() for _ in range(100)]
    assert times == sorted(times)
    drawn = {dice.entropy() for _ in range(1000)}
    assert len(drawn) == 1000
    assert all(0 <= value < 1 << 80 for value in drawn)
