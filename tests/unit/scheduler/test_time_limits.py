"""A pool that ends jobs after a while gets none that ask for longer, and those that ask nothing fit it."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from moulin.domain.factory import Pool, Zone
from moulin.domain.observation import NodeCapacity
from moulin.domain.reasons import hint_of, sentence
from moulin.domain.wire import decode, encode
from moulin.domain.workload import LeaseSpec, Where, WorkloadKind
from moulin.scheduler import longest_time_s, possible
from tests.unit.scheduler.world import endpoint, job, node, submission, world

SHORT = Pool(name="short", zone="a", engine="slurm", machine_class="cpu")


def test_a_job_goes_where_its_time_limit_is_allowed():
    here = world(node("n1", asked_time_limit_s=1800), node("n2"))
    here.submit("long", job(3, time_limit_s=3600))
    here.now_ns += 1
    here.submit("short", job(3, time_limit_s=1800))
    placed = {place.workload: [task.node for task in place.tasks] for place in here.cycle().places}
    assert placed == {"long": ["n2"], "short": ["n1"]}


def test_a_limit_that_no_pool_allows_is_refused_with_the_longest():
    here = world(node("n1", asked_time_limit_s=86_400), more=(SHORT,))
    here.join(node("n2", asked_time_limit_s=1800), pool="short")
    [reason] = possible(here.state, submission("x", job(time_limit_s=86_401)), here.policy)
    assert (reason.code, reason.parameters) == (
        "ExceedsTimeLimit",
        {"wanted_min": "1441", "longest_min": "1440", "count": "2", "pools": "pa, short"},
    )
    assert "1441 min, the longest" in sentence(reason)
    assert "time_limit" in hint_of(reason)
    assert possible(here.state, submission("x", job(time_limit_s=86_400)), here.policy) == ()


def test_an_endpoint_and_an_unlimited_job_ask_for_no_time():
    here = world(node("n1", asked_time_limit_s=1800))
    assert possible(here.state, submission("x", endpoint()), here.policy) == ()
    assert possible(here.state, submission("x", job()), here.policy) == ()


def test_a_lease_is_as_long_as_its_nodes_allow():
    here = world(node("n1", asked_time_limit_s=1800, has_login=True))
    lease = job(kind=WorkloadKind.LEASE, task=None, lease=LeaseSpec(ssh_keys=()), time_limit_s=3600)
    [reason] = possible(here.state, submission("x", lease), here.policy)
    assert reason.code == "ExceedsTimeLimit"


def test_size_is_judged_before_time_and_time_only_where_it_may_run():
    here = world(node("n1", asked_time_limit_s=1800), more=(Zone(name="b", site="lyon"),))
    here.declare(replace(SHORT, zone="b"))
    here.join(node("n2"), pool="short")
    [large] = possible(here.state, submission("x", job(99, time_limit_s=3600)), here.policy)
    assert large.code == "ExceedsNode"
    in_a = job(time_limit_s=3600, where=Where(zones=("a",)))
    [reason] = possible(here.state, submission("x", in_a), here.policy)
    assert (reason.code, reason.parameters["pools"]) == ("ExceedsTimeLimit", "pa")
    assert longest_time_s(here.state, submission("x", in_a)) == 1800
    assert longest_time_s(here.state, submission("x", job())) == 0


def test_the_longest_is_of_nodes_large_enough():
    here = world(node("n1", 8, asked_time_limit_s=600), node("n2", 2, asked_time_limit_s=1800))
    assert longest_time_s(here.state, submission("x", job(1))) == 1800
    assert longest_time_s(here.state, submission("x", job(4))) == 600
    assert longest_time_s(here.state, submission("x", job(99))) == 0
    assert longest_time_s(world().state, submission("x", job())) == 0


def test_a_node_of_an_old_log_allows_any_time():
    told = encode(node("n1"))
    del told["asked_time_limit_s"]
    assert decode(NodeCapacity, told) == node("n1")


limits = st.sampled_from([0, 600, 1800, 86_400])


@given(
    st.lists(st.tuples(st.integers(1, 3), limits), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 90_000)), min_size=1, max_size=8),
)
def test_placed_means_allowed_and_refused_means_by_nobody(nodes, jobs):
    here = world(*(node(f"n{i}", cpus, asked_time_limit_s=s) for i, (cpus, s) in enumerate(nodes)))
    for index, (cpus, wanted_s) in enumerate(jobs):
        spec = job(cpus, time_limit_s=wanted_s)
        large = [limit_s for size, limit_s in nodes if size >= cpus]
        is_allowed = any(not limit_s or wanted_s <= limit_s for limit_s in large)
        reasons = [each.code for each in possible(here.state, submission("x", spec), here.policy)]
        assert ("ExceedsTimeLimit" in reasons) is (bool(large) and not is_allowed)
        if not reasons:
            here.submit(f"w{index}", spec)
    for place in here.cycle().places:
        wanted_s = here.state.workloads[place.workload].time_limit_s
        for task in place.tasks:
            limit_s = nodes[int(task.node[1:])][1]
            assert not limit_s or wanted_s <= limit_s
