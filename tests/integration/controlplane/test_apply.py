"""Operator files: a diff first, then all of it or nothing."""

from dataclasses import replace

import pytest

from moulin.domain.errors import Conflict, EngineRefused, InUse, InvalidSpec
from moulin.domain.events import FactoryApplied, NodeJoined, NodeLeft
from moulin.domain.factory import (
    Organisation,
    Pool,
    PriceBook,
    Project,
    Site,
    Zone,
    ZoneState,
)
from tests.integration.controlplane.bench import EURO, FILE, PRICES, Bench, factory, job


def changed(objects, name, **fields):
    return tuple(replace(o, **fields) if o.name == name else o for o in objects)


def without(objects, *names):
    return tuple(o for o in objects if o.name not in names)


def actions(applied):
    return [(diff.action, str(diff.kind), diff.name) for diff in applied.diffs]


def test_a_first_apply_creates_in_the_order_of_reference(bench):
    applied = bench.apply(*reversed(factory()))
    assert actions(applied) == [
        ("create", "organisation", "lab"),
        ("create", "organisation", "other"),
        ("create", "site", "hill"),
        ("create", "zone", "east"),
        ("create", "pool", "floor"),
        ("create", "project", "atelier"),
        ("create", "project", "guest"),
        ("create", "price_book", "prices"),
    ]
    assert [row.name for row in bench.store.declared() if row.kind == "project"] == [
        "atelier",
        "guest",
    ]


def test_a_dry_run_says_the_same_and_does_nothing(bench):
    dry = bench.apply(*factory(), dry=True)
    assert dry.is_dry_run
    assert not bench.store.declared()
    assert actions(bench.apply(*factory())) == actions(dry)


def test_applying_again_is_no_event(mill):
    before = mill.store.last_sequence()
    applied = mill.apply(*factory())
    assert applied.diffs == ()
    assert len(mill.events(FactoryApplied)) == 1
    assert mill.store.last_sequence() == before


def test_an_update_shows_before_and_after(mill):
    applied = mill.apply(*changed(factory(), "atelier", budget_neur=7 * EURO))
    [diff] = applied.diffs
    assert diff.action == "update"
    assert diff.before["budget_neur"] != diff.after["budget_neur"]
    assert mill.available() == 7 * EURO


def test_what_a_file_no_longer_names_is_removed_last_first(mill):
    applied = mill.apply(*without(factory(), "floor", "east", "hill"))
    assert actions(applied) == [
        ("delete", "pool", "floor"),
        ("delete", "zone", "east"),
        ("delete", "site", "hill"),
    ]
    assert not [row for row in mill.store.declared() if row.kind in ("site", "zone", "pool")]


def test_the_nodes_of_a_removed_pool_leave(mill):
    mill.apply(*without(factory(), "floor"))
    mill.turn(2)
    assert {e.node for e in mill.events(NodeLeft)} == {"floor-0", "floor-1"}
    assert len(mill.plane.books.schedule.nodes) == 0
    assert not mill.plane.books.cursors.nodes


@pytest.mark.parametrize(
    ("objects", "word"),
    [
        (without(factory(), "lab"), "organisation 'lab'"),
        (without(factory(), "hill"), "site 'hill'"),
        (without(factory(), "east"), "zone 'east'"),
        (changed(factory(), "hill", operator="nobody"), "organisation 'nobody'"),
        (changed(factory(), "hill", owners={"nobody": 10**6}), "organisation 'nobody'"),
        ((*factory(), Organisation(name="lab")), "declared twice"),
        ((*factory(), Organisation(name="")), "not a name"),
        ((*factory(), Organisation(name="a b")), "not a name"),
        ((*factory(), Organisation(name="../etc")), "not a name"),
        ((*factory(), Organisation(name="a" * 64)), "not a name"),
    ],
)
def test_what_cannot_stand_changes_nothing(mill, objects, word):
    before = mill.store.last_sequence()
    with pytest.raises(InvalidSpec, match=word):
        mill.apply(*objects)
    assert mill.store.last_sequence() == before


def test_a_pool_of_no_engine_changes_nothing(mill):
    pool = Pool(name="cloud", zone="east", engine="magic", machine_class="m")
    with pytest.raises(EngineRefused, match="magic"):
        mill.apply(*factory(pools=(pool,)))
    assert len(mill.events(FactoryApplied)) == 1


def test_two_files_keep_to_their_own(mill):
    other = (Organisation(name="third"), Project(name="third-project", organisation="third"))
    mill.apply(*other, file="other.yaml")
    assert mill.apply(*factory()).diffs == ()
    with pytest.raises(Conflict, match=FILE):
        mill.apply(Project(name="atelier", organisation="lab"), file="other.yaml")
    removed = mill.apply(file="other.yaml")
    assert actions(removed) == [
        ("delete", "project", "third-project"),
        ("delete", "organisation", "third"),
    ]
    assert mill.plane.books.project("atelier") is not None


def test_a_file_may_stand_on_another_and_holds_it_in_place(mill):
    project = Project(name="third-project", organisation="lab")
    mill.apply(project, file="other.yaml")
    with pytest.raises(InvalidSpec, match="third-project"):
        mill.apply(*without(factory(), "lab", "atelier", "hill", "east", "floor"))


@pytest.mark.parametrize("name", ["floor", "east", "hill", "atelier", "lab"])
def test_what_is_in_use_is_not_removed_and_its_users_are_listed(mill, name):
    view = mill.submit(job(None))
    mill.turn(1)
    gone = {
        "floor": ("floor",),
        "east": ("floor", "east"),
        "hill": ("floor", "east", "hill"),
        "atelier": ("atelier",),
        "lab": ("atelier", "lab"),
    }[name]
    before = mill.store.last_sequence()
    with pytest.raises(InUse) as caught:
        mill.apply(*without(factory(), *gone))
    users = caught.value.details["users"]
    assert isinstance(users, list)
    assert all(user.startswith(view.id) for user in users)
    assert mill.store.last_sequence() == before
    mill.stop(view.id)
    mill.turns(3, 1.0)
    assert mill.state(view.id) == "cancelled"
    assert mill.apply(*without(factory(), *gone)).diffs


def test_a_project_with_waiting_work_is_in_use(mill):
    mill.submit(job(5, cpus=4))
    mill.submit(job(5, cpus=4))
    waiting = mill.submit(job(5, cpus=4))
    with pytest.raises(InUse) as caught:
        mill.apply(*without(factory(), "atelier"))
    users = caught.value.details["users"]
    assert isinstance(users, list)
    assert waiting.id in users


@pytest.mark.parametrize(
    "fields", [{"settings": {"nodes": "3"}}, {"zone": "west"}, {"machine_class": "other"}]
)
def test_a_pool_is_not_exchanged_under_its_tasks(mill, fields):
    west = (Zone(name="west", site="hill"),)
    mill.apply(*factory(zones=west))
    view = mill.submit(job(None))
    mill.turn(1)
    with pytest.raises(InUse):
        mill.apply(*changed(factory(zones=west), "floor", **fields))
    mill.stop(view.id)
    mill.turns(3, 1.0)
    assert mill.apply(*changed(factory(zones=west), "floor", **fields)).diffs


def test_a_zone_does_not_move_to_another_site_under_its_tasks(mill):
    coast = Site(name="coast", country="DE")
    mill.apply(*factory(), coast)
    mill.submit(job(None))
    mill.turn(1)
    with pytest.raises(InUse):
        mill.apply(*changed(factory(), "east", site="coast"), coast)
    mill.apply(*changed(factory(), "east", state=ZoneState.DRAINING), coast)


def test_changed_settings_connect_other_machines(mill):
    mill.apply(*changed(factory(), "floor", settings={"nodes": "3"}))
    mill.turns(2, 1.0)
    assert mill.plane.books.schedule.nodes.names == ["floor-0", "floor-1", "floor-2"]
    view = mill.submit(job(1))
    mill.turns(3, 1.0)
    assert mill.state(view.id) == "succeeded"


def test_a_dry_run_of_other_settings_leaves_the_machines_alone(mill):
    view = mill.submit(job(5))
    mill.turn(1)
    other = Pool(name="annex", zone="east", engine="simulated", machine_class="m")
    mill.apply(*factory(pools=(other,)), dry=True)
    mill.turns(8, 1.0)
    assert mill.state(view.id) == "succeeded"
    assert {e.pool for e in mill.events(NodeJoined)} == {"floor"}


def test_a_pool_moved_while_idle_is_metered_in_its_new_zone(mill):
    west = (Zone(name="west", site="hill"),)
    mill.apply(*changed(factory(zones=west), "floor", zone="west"))
    view = mill.submit(job(5))
    mill.turns(12, 1.0)
    assert {r.usage.zone for r in mill.store.receipts(workload=view.id)} == {"west"}


def test_a_price_book_in_force_later_prices_later_usages(mill):
    soon = mill.clock.now_ns() + 20 * 10**9
    dear = PriceBook(
        name="dear",
        effective_from_ns=soon,
        prices=tuple(replace(price, unit_price_neur=2 * price.unit_price_neur) for price in PRICES),
    )
    mill.apply(*factory(), dear)
    view = mill.submit(job(40))
    mill.turns(60, 1.0)
    books = [r.charge.price_book for r in mill.store.receipts(workload=view.id)]
    assert books[0] == "prices"
    assert books[-1] == "dear"


def test_an_engine_that_cannot_be_had_after_a_restart_ends_nothing():
    bench = Bench()
    bench.apply(*factory())
    view = bench.submit(job(30))
    bench.turns(3, 1.0)

    def refuse(pool):
        raise EngineRefused("connect the pool: this machine has changed")

    bench.connect = refuse
    bench.reopen()
    bench.turns(5, 1.0)
    assert bench.state(view.id) == "running"
    nodes = bench.plane.books.schedule.nodes
    assert not any(row.is_reachable for row in nodes.rows)
    bench.connect = bench.engine_for
    bench.turns(40, 1.0)
    assert bench.state(view.id) == "succeeded"
