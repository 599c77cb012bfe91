"""Where waiting work goes: gangs whole, best fit, order, law, power, quota, and who waits for whom."""

from dataclasses import replace

import pytest

from moulin.domain.events import NodeJoined, NodeLeft, NodeReachabilityChanged
from moulin.domain.factory import (
    CountryBasis,
    Organisation,
    Pool,
    Project,
    Quota,
    Site,
    Zone,
    ZoneState,
)
from moulin.domain.ids import NodeId
from moulin.domain.workload import Where, WorkloadKind, WorkloadSpec
from moulin.scheduler import SchedulerPolicy
from tests.unit.scheduler.world import BASE, SECOND, World, endpoint, job, node, world

SWEDEN = (
    Site(name="lulea", country="SE"),
    Zone(name="b", site="lulea"),
    Pool(name="pb", zone="b", engine="local", machine_class="cpu"),
)


def nodes_of(here: World, workload: str) -> list[str]:
    [place] = [place for place in here.cycle().places if place.workload == workload]
    return [task.node for task in place.tasks]


def test_a_gang_is_placed_on_distinct_nodes_in_rank_order():
    here = world(node("n2"), node("n1"), node("n3"))
    here.submit("g", job(1, nodes=3))
    [place] = here.cycle().places
    assert [task.rank for task in place.tasks] == [0, 1, 2]
    assert sorted(task.node for task in place.tasks) == ["n1", "n2", "n3"]
    assert (place.attempt, place.generation) == ("g.u0.g1", 1)


def test_a_gang_that_does_not_fit_whole_takes_nothing():
    here = world(node("n1"), node("n2", cpus=1))
    here.submit("g", job(2, nodes=2))
    assert here.placed() == []
    assert not here.state.steps


def test_a_gang_stays_in_one_zone_and_under_one_engine():
    elsewhere = (
        Zone(name="b", site="lyon"),
        Pool(name="pb", zone="b", engine="local", machine_class="cpu"),
        Pool(name="pc", zone="a", engine="ray", machine_class="cpu"),
    )
    here = world(node("n1"), more=elsewhere)
    here.join(node("m1"), pool="pb")
    here.join(node("r1"), pool="pc")
    here.submit("g", job(1, nodes=2))
    assert here.placed() == []
    here.join(node("m2"), pool="pb")
    assert nodes_of(here, "g") == ["m1", "m2"]


def test_the_fullest_node_that_fits_is_taken_and_ties_go_to_the_first_name():
    here = world(node("n1", cpus=8), node("n3", cpus=4), node("n2", cpus=4))
    here.submit("x", job(2))
    assert nodes_of(here, "x") == ["n2"]
    here.submit("y", job(2))
    assert nodes_of(here, "y") == ["n2"]
    here.submit("z", job(6))
    assert nodes_of(here, "z") == ["n1"]


def test_work_without_accelerators_leaves_nodes_with_accelerators_alone_while_it_can():
    here = world(node("a1", cpus=2, devices=8), node("n1", cpus=64))
    here.submit("x", job(1))
    assert nodes_of(here, "x") == ["n1"]


def test_devices_are_named_lowest_free_first_and_given_back():
    here = world(node("n1", cpus=8, devices=4))
    here.submit("x", job(1, devices=2))
    here.submit("y", job(1, devices=1))
    devices = [place.tasks[0].devices for place in here.cycle().places]
    assert devices == [(0, 1), (2,)]
    here.exit("x.u0.g1.t0")
    here.cycle()
    here.submit("z", job(1, devices=3))
    [place] = here.cycle().places
    assert place.tasks[0].devices == (0, 1, 3)


def test_each_device_is_given_out_once():
    here = world(node("n1", cpus=8, devices=2))
    for name in "abc":
        here.submit(name, job(1, devices=1))
    assert [place.tasks[0].devices for place in here.cycle().places] == [(0,), (1,)]


def test_equal_gangs_fill_the_same_nodes_in_the_same_order():
    here = world(node("n1", cpus=4), node("n2", cpus=8), node("n3", cpus=16))
    for name in "ab":
        here.submit(name, job(1, nodes=2))
    nodes = [[task.node for task in place.tasks] for place in here.cycle().places]
    assert nodes == [["n1", "n2"], ["n1", "n2"]]


def test_a_named_accelerator_class_is_the_only_one_taken():
    here = world(node("n1", devices=2, accelerator_class="a100"), node("n2", devices=8))
    wanted = job(1, devices=1)
    named = replace(wanted, resources=replace(wanted.resources, accelerator_class="h100"))
    here.submit("x", named)
    assert nodes_of(here, "x") == ["n2"]


@pytest.mark.parametrize(
    ("state", "is_placed"),
    [(state, state is ZoneState.OPEN) for state in ZoneState],
)
def test_only_an_open_zone_accepts_placements(state: ZoneState, is_placed: bool):
    here = world(node("n1"))
    here.declare(Zone(name="a", site="lyon", state=state))
    here.submit("x", job())
    assert bool(here.placed()) is is_placed


@pytest.mark.parametrize(
    ("where", "countries", "expected"),
    [
        (Where(), (), "n1"),
        (Where(countries=("SE",)), (), "m1"),
        (Where(countries=("FR", "SE"), zones=("b",)), (), "m1"),
        (Where(zones=("b",)), (), "m1"),
        (Where(), ("SE",), "m1"),
        (Where(countries=("FR",)), ("SE",), None),
        (Where(countries=("DE",)), (), None),
    ],
)
def test_where_and_the_organisation_restrict_together(
    where: Where, countries: tuple[str, ...], expected: str | None
):
    here = world(node("n1", cpus=2), more=SWEDEN)
    here.join(node("m1"), pool="pb")
    here.declare(Organisation(name="acme", countries=countries))
    here.submit("x", job(where=where))
    placed = [place.tasks[0].node for place in here.cycle().places]
    assert placed == ([expected] if expected else [])


@pytest.mark.parametrize("basis", list(CountryBasis))
def test_a_guessed_country_satisfies_no_where(basis: CountryBasis):
    here = world(node("n1"))
    here.declare(Site(name="lyon", country="FR", country_basis=basis))
    here.submit("x", job(where=Where(countries=("FR",))))
    here.submit("y", job())
    expected = ["y"] if basis is CountryBasis.GUESSED else ["x", "y"]
    assert here.placed() == expected


def test_priority_then_time_then_id():
    here = world(node("n1", cpus=1))
    here.submit("b", job())
    here.submit("a", job())
    here.now_ns = 1
    here.submit("0", job())
    here.submit("high", job(priority=60))
    order = []
    for _ in range(4):
        [name] = here.placed()
        order.append(name)
        here.exit(f"{name}.u0.g1.t0")
    assert order == ["high", "a", "b", "0"]


def test_over_quota_waits_and_holds_up_nobody_else():
    small = Project(name="small", organisation="acme", quota=Quota(cpu_milli=1000))
    here = world(node("n1", cpus=4), more=(small,))
    for name in ("s1", "s2"):
        here.submit(name, job(priority=90), project="small")
    here.submit("w", job())
    assert here.placed() == ["s1", "w"]
    here.exit("s1.u0.g1.t0")
    assert here.placed() == ["s2"]


@pytest.mark.parametrize(
    "quota",
    [
        Quota(cpu_milli=2000),
        Quota(memory_bytes=2 * 10**9),
        Quota(accelerators=2),
        Quota(workloads=2),
    ],
)
def test_each_resource_of_a_quota_binds(quota: Quota):
    here = world(node("n1", cpus=8, devices=8))
    here.declare(Project(name="web", organisation="acme", quota=quota))
    for name in "abc":
        here.submit(name, job(1, devices=1))
    assert here.placed() == ["a", "b"]


def test_replicas_of_one_endpoint_are_one_workload_of_the_quota():
    quota = Quota(workloads=1)
    here = world(node("n1", cpus=8))
    here.declare(Project(name="web", organisation="acme", quota=quota))
    here.submit("e", endpoint(replicas=3))
    here.submit("x", job())
    assert here.placed() == ["e", "e", "e"]


def powered(envelope_w: int, pue_ppm: int = 1_000_000, nodes: int = 2) -> World:
    machines = [node(f"n{i}", cpus=4, idle_mw=100_000, peak_mw=500_000) for i in range(nodes)]
    here = world(*machines)
    site = Site(name="lyon", country="FR", power_envelope_w=envelope_w, pue_ppm=pue_ppm)
    here.declare(site)
    return here


@pytest.mark.parametrize(
    ("envelope_w", "pue_ppm", "placed"),
    [(399, 1_000_000, 1), (400, 1_000_000, 2), (400, 1_200_000, 1), (480, 1_200_000, 2)],
)
def test_the_power_envelope_counts_idle_held_shares_and_overhead(
    envelope_w: int, pue_ppm: int, placed: int
):
    here = powered(envelope_w, pue_ppm)
    for name in ("x", "y", "z"):
        here.submit(name, job(1))
    assert len(here.placed()) == placed


def test_the_larger_of_cpu_and_device_share_counts_once():
    here = world(node("n1", cpus=8, devices=8, idle_mw=0, peak_mw=800_000))
    here.declare(Site(name="lyon", country="FR", power_envelope_w=400))
    here.submit("gpu", job(1, devices=4))
    here.submit("cpu", job(3))
    here.submit("more", job(1, devices=1))
    assert here.placed() == ["cpu", "gpu"]


def test_less_power_hungry_nodes_are_taken_where_the_best_fit_would_exceed_the_envelope():
    here = world(
        node("n1", cpus=2, idle_mw=0, peak_mw=1_000_000),
        node("n2", cpus=4, idle_mw=0, peak_mw=80_000),
    )
    here.declare(Site(name="lyon", country="FR", power_envelope_w=100))
    here.submit("x", job(1))
    assert nodes_of(here, "x") == ["n2"]


def test_power_a_gang_waits_for_is_not_given_to_those_after_it():
    here = powered(850)
    here.submit("first", job(1))
    here.cycle()
    here.submit("gang", job(3, nodes=2, priority=60))
    here.submit("late", job(1))
    assert here.placed() == []
    here.exit("first.u0.g1.t0")
    assert here.placed() == ["gang"]


def test_a_blocked_gang_keeps_nodes_so_that_small_work_cannot_starve_it():
    here = world(node("n1"), node("n2"))
    here.submit("first", job(1))
    here.cycle()
    here.submit("gang", job(4, nodes=2))
    here.submit("small", job(1))
    assert here.placed() == []
    here.exit("first.u0.g1.t0")
    assert here.placed() == ["gang"]


def test_kept_nodes_are_closed_to_shapes_that_were_placed_before_the_gang_too():
    here = world(node("n1"), node("n2"))
    here.submit("high", job(1, priority=90))
    here.submit("gang", job(4, nodes=2, priority=60))
    here.submit("low", job(1))
    assert here.placed() == ["high"]


def test_a_gang_does_not_wait_for_nodes_out_of_reach():
    here = world(node("n1"), node("n2"), node("n3"))
    here.add(NodeReachabilityChanged(node=NodeId("n1"), is_reachable=False))
    for name in "ab":
        here.submit(name, job(3))
    here.cycle()
    here.submit("gang", job(4, nodes=2))
    here.submit("small", job(1))
    assert here.placed() == []


def test_other_nodes_stay_open_while_a_gang_waits():
    here = world(node("n1", cpus=4), node("n2", cpus=4), node("n3", cpus=1))
    here.submit("first", job(3))
    here.cycle()
    here.submit("gang", job(4, nodes=2))
    here.submit("small", job(1))
    assert nodes_of(here, "small") == ["n3"]


def test_nobody_waits_for_what_no_time_limit_will_free():
    here = world(node("n1"))
    here.submit("forever", endpoint(cpus=1))
    here.cycle()
    here.submit("large", job(4))
    here.submit("small", job(1))
    assert here.placed() == ["small"]


def test_no_power_is_kept_that_no_time_limit_will_free():
    here = powered(450)
    here.submit("forever", endpoint(cpus=1))
    here.cycle()
    here.submit("large", job(3))
    here.submit("small", job(1))
    assert here.placed() == ["small"]


def test_without_reservations_small_work_goes_first():
    here = world(node("n1"), node("n2"))
    here.policy = SchedulerPolicy(reservations_max=0)
    here.submit("first", job(1))
    here.cycle()
    here.submit("gang", job(4, nodes=2))
    here.submit("small", job(1))
    assert here.placed() == ["small"]


def test_a_gang_waiting_only_for_its_zone_reserves_nothing():
    here = world(node("n1"), more=(Zone(name="soon", site="lyon", state=ZoneState.BUILDING),))
    here.submit("x", job(priority=99, where=Where(zones=("soon",))))
    here.submit("y", job())
    assert here.placed() == ["y"]


@pytest.mark.parametrize("is_left", [True, False])
def test_nothing_is_placed_on_a_node_that_left_or_cannot_be_reached(is_left: bool):
    here = world(node("n1"), node("n2"))
    gone = NodeId("n1")
    here.add(
        NodeLeft(node=gone) if is_left else NodeReachabilityChanged(node=gone, is_reachable=False)
    )
    here.submit("x", job())
    here.submit("y", job(4))
    assert [place.tasks[0].node for place in here.cycle().places] == ["n2"]
    here.add(NodeJoined(pool="pa", capacity=node("n1")))
    assert here.placed() == ["y"]


def test_a_lease_takes_whole_empty_nodes_with_everything_on_them():
    here = world(node("n1", cpus=4, devices=2), node("n2", cpus=8, devices=2))
    here.submit("small", job(1))
    here.cycle()
    here.submit("lease", job(1, kind=WorkloadKind.LEASE))
    [place] = here.cycle().places
    assert [(task.node, task.devices) for task in place.tasks] == [("n2", (0, 1))]
    here.submit("late", job(4))
    assert here.placed() == []
    held = here.state.held_by_project["web"]
    assert (held.cpu_milli, held.accelerators) == (9000, 2)


def test_a_lease_counts_the_whole_node_against_the_quota():
    here = world(node("n1", cpus=4))
    here.declare(Project(name="web", organisation="acme", quota=Quota(cpu_milli=3000)))
    here.submit("lease", job(1, kind=WorkloadKind.LEASE))
    assert here.placed() == []


def test_a_plan_is_bounded_and_the_next_cycle_goes_on():
    here = world(node("n1"))
    here.policy = SchedulerPolicy(places_max=2)
    for name in "abc":
        here.submit(name, job(1))
    assert [here.placed(), here.placed()] == [["a", "b"], ["c"]]


def test_undeclared_pools_take_no_work():
    here = World()
    here.join(node("n1"))
    here.submit("x", job())
    assert here.placed() == []
    here.declare(*BASE)
    assert here.placed() == ["x"]


def test_deciding_changes_nothing_and_repeats_itself():
    here = world(node("n1", devices=2))
    specs: list[WorkloadSpec] = [job(1, devices=1), job(9), endpoint(2)]
    for index, spec in enumerate(specs):
        here.submit(str(index), spec)
    here.now_ns = 5 * SECOND
    before = here.state.digest()
    assert here.decide() == here.decide()
    assert here.state.digest() == before
