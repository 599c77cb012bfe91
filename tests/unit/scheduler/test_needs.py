"""What a job needs that is no amount: read from its spec, placed only where it is carried, refused else."""

from dataclasses import replace

import pytest

from moulin.domain.factory import Pool, PreemptionScope, Zone
from moulin.domain.ids import WorkloadId
from moulin.domain.image import Form
from moulin.domain.needs import (
    HINTS,
    NEED_BY_FORM,
    TITLES,
    Need,
    image_lacks,
    lacks_in_words,
)
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import Place
from moulin.domain.reasons import Reason, ReasonCode, hint_of, sentence
from moulin.domain.wire import decode, encode
from moulin.domain.workload import LeaseSpec, Resources, TaskTemplate, Where, WorkloadKind
from moulin.scheduler import explain, possible, trial
from moulin.scheduler.needs import need_mask, needs_in, needs_of
from moulin.scheduler.views import node_views
from tests.unit.scheduler.world import GB, SECOND, endpoint, job, node, submission, world

RAY = Pool(name="pr", zone="a", engine="ray", machine_class="cpu")


def given(**more):
    return job(task=TaskTemplate(command=("true",), **more))


SECRET = given(secrets={"TOKEN": "token"})
ALPINE = given(image="alpine")


@pytest.mark.parametrize(
    ("spec", "needs"),
    [
        (given(), "no-image"),
        (given(secrets={"A": "a"}), "secrets no-image"),
        (given(secret_files={"A": "a"}), "secrets no-image"),
        (given(bundle="0" * 64), "folder no-image"),
        (given(workdir="/share"), "no-image"),
        (given(inputs={"a": "/share/a"}), "copies no-image"),
        (given(outputs={"a": "s3://mill/a"}), "copies objects no-image"),
        (ALPINE, "registry-image"),
        (given(image="/images/a.sif"), "sif-image"),
        (given(image="ftp://x y"), "unknown-image"),
        (given(image="alpine", outputs={"a": "/a"}), "copies registry-image outputs-of-image"),
        (replace(given(), stop_signal="USR1"), "stop-signal no-image"),
        (endpoint(), "endpoint"),
        (job(kind=WorkloadKind.LEASE, task=None, lease=LeaseSpec(ssh_keys=())), "login"),
    ],
)
def test_needs_are_read_from_the_spec(spec, needs):
    assert " ".join(needs_of(spec)) == needs


def test_each_need_has_words_advice_and_a_bit_of_its_own():
    assert set(TITLES) == set(HINTS) == set(Need)
    assert set(NEED_BY_FORM) == set(Form)
    assert needs_in(need_mask(Need)) == tuple(Need)
    assert len({need_mask([need]) for need in Need}) == len(Need)
    assert image_lacks(Form) == ()


def test_a_node_of_an_old_log_lacks_nothing():
    told = encode(node("n1"))
    del told["lacks"]
    assert decode(NodeCapacity, told) == node("n1")
    lacking = node("n1", lacks=(Need.SECRETS,))
    assert decode(NodeCapacity, encode(lacking)) == lacking


def test_a_nodes_row_says_what_it_lacks_and_a_login_where_it_has_none():
    made = world(
        node("n1", lacks=(Need.SECRETS, Need.FOLDER)),
        node("n2", has_login=True),
        node("n3", lacks=(Need.LOGIN, Need.COPIES)),
    )
    told = {view.node: view.lacks for view in node_views(made.state)}
    assert told == {"n1": ("login", "secrets", "folder"), "n2": (), "n3": ("login", "copies")}


def test_images_of_every_form_are_one_word():
    none = ("login", *(need.value for need in image_lacks(())), "secrets")
    assert lacks_in_words(none) == ("an SSH login", "images", "secrets")
    some = tuple(need.value for need in image_lacks({Form.REGISTRY}))
    assert len(lacks_in_words(some)) == len(Form) - 1


def test_work_goes_only_where_it_is_carried():
    here = world(
        node("n1", lacks=(Need.REGISTRY_IMAGE,)), node("n2", lacks=(Need.SECRETS,)), more=(RAY,)
    )
    here.join(node("n3", lacks=(Need.SECRETS, Need.REGISTRY_IMAGE)), pool="pr")
    here.submit("secret", replace(SECRET, resources=Resources(cpu_milli=3000, memory_bytes=GB)))
    here.submit("image", replace(ALPINE, resources=Resources(cpu_milli=3000, memory_bytes=GB)))
    here.now_ns += 1
    here.submit("plain", job(3))
    placed = {place.workload: [task.node for task in place.tasks] for place in here.cycle().places}
    assert placed == {"secret": ["n1"], "image": ["n2"], "plain": ["n3"]}


def test_what_no_pool_carries_is_refused_with_numbers_and_advice():
    here = world(node("n1", lacks=(Need.SECRETS,)), more=(RAY,))
    here.join(node("n2", lacks=(Need.SECRETS,)), pool="pr")
    [reason] = possible(here.state, submission("x", SECRET), here.policy)
    assert (reason.code, reason.parameters) == (
        "CannotCarry",
        {"what": "secrets", "needs": "secrets", "count": "2", "pools": "pa, pr"},
    )
    assert sentence(reason) == (
        "it needs secrets, which none of the 2 permitted node(s) large enough can carry"
        " (pools: pa, pr)"
    )
    assert hint_of(reason) == HINTS[Need.SECRETS]
    assert trial(here.state, submission("x", SECRET), 0, here.policy) == (reason,)
    assert possible(here.state, submission("x", job()), here.policy) == ()


def test_needs_that_only_different_nodes_carry_are_named_together():
    here = world(node("n1", lacks=(Need.SECRETS,)), node("n2", lacks=(Need.REGISTRY_IMAGE,)))
    both = given(image="alpine", secrets={"A": "a"})
    [reason] = possible(here.state, submission("x", both), here.policy)
    assert reason.parameters["what"] == "secrets and an image"
    here.join(node("n3"))
    assert possible(here.state, submission("x", both), here.policy) == ()


def test_only_the_pools_of_its_zones_count():
    there = (Zone(name="b", site="lyon"), replace(RAY, zone="b"))
    here = world(node("n1"), more=there)
    here.join(node("n2", lacks=(Need.SECRETS,)), pool="pr")
    in_b = replace(SECRET, where=Where(zones=("b",)))
    [reason] = possible(here.state, submission("x", in_b), here.policy)
    assert reason.parameters["pools"] == "pr"
    assert isinstance(trial(here.state, submission("x", SECRET), 0, here.policy), Place)


def test_size_is_judged_before_what_is_carried():
    here = world(node("n1", lacks=(Need.SECRETS,)))
    large = replace(SECRET, resources=Resources(cpu_milli=99_000, memory_bytes=GB))
    [reason] = possible(here.state, submission("x", large), here.policy)
    assert reason.code == "ExceedsNode"


def test_a_gang_needs_it_on_every_node():
    here = world(node("n1"), node("n2", lacks=(Need.SECRETS,)))
    [reason] = possible(here.state, submission("x", replace(SECRET, nodes=2)), here.policy)
    assert (reason.code, reason.parameters) == ("ExceedsFactory", {"wanted": "2", "total": "1"})


def test_what_was_possible_once_waits_and_says_why():
    here = world(node("n1"))
    here.submit("first", job(4))
    here.submit("secret", SECRET)
    here.cycle()
    here.join(node("n1", lacks=(Need.SECRETS,)))
    [reason] = explain(here.state, WorkloadId("secret"), here.now_ns, here.policy)
    assert reason.code == "CannotCarry"
    here.join(node("n2"))
    [place] = here.cycle().places
    assert place.workload == "secret"


def test_no_room_is_kept_and_nobody_stopped_where_it_is_not_carried():
    scope = PreemptionScope.ALL
    here = world(node("n1"), node("n2", lacks=(Need.SECRETS,)))
    here.declare(Pool(name="pa", zone="a", engine="local", machine_class="cpu", preemption=scope))
    for name in ("a", "b"):
        here.submit(name, job(4, priority=10, time_limit_s=100))
    for place in here.cycle().places:
        here.run(f"{place.attempt}.t0")
    here.now_ns = 10 * SECOND
    whole = Resources(cpu_milli=4000, memory_bytes=GB)
    here.submit("x", replace(SECRET, resources=whole, priority=90))
    [stop] = here.cycle().stops
    stopped = here.state.attempts[stop.attempt]
    assert [task.node for task in stopped.tasks] == ["n1"]


def test_of_alternatives_the_one_that_is_carried_is_taken():
    # Both need the secret; only the machine without accelerators carries one.
    here = world(node("n1", devices=2, lacks=(Need.SECRETS,)), node("n2"))
    gpu = Resources(cpu_milli=1000, memory_bytes=GB, accelerators=1)
    plain = Resources(cpu_milli=1000, memory_bytes=GB)
    spec = replace(SECRET, resources=gpu, alternatives=(plain,))
    assert possible(here.state, submission("x", spec), here.policy) == ()
    here.submit("x", spec)
    [place] = here.cycle().places
    assert ([task.node for task in place.tasks], place.choice) == (["n2"], 1)


def test_advice_is_of_the_first_need_and_empty_where_there_is_none():
    several = Reason(code=ReasonCode.CANNOT_CARRY, parameters={"needs": "objects secrets"})
    assert hint_of(several) == HINTS[Need.SECRETS]
    assert hint_of(Reason(code=ReasonCode.CANNOT_CARRY)) == ""
    assert hint_of(Reason(code=ReasonCode.HELD)) == ""
