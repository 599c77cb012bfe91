"""Whatever nodes lack and jobs need: what is placed is carried, and what is refused nobody carries."""

from hypothesis import given
from hypothesis import strategies as st

from moulin.domain.image import Form
from moulin.domain.needs import NEED_BY_FORM, NOWHERE, Need, image_lacks
from moulin.domain.workload import TaskTemplate
from moulin.scheduler import possible
from moulin.scheduler.needs import needs_of
from tests.unit.scheduler.world import job, node, submission, world

lacking = st.lists(st.sampled_from(sorted(set(Need) - {Need.LOGIN})), unique=True, max_size=5)
machines = st.lists(st.tuples(st.integers(1, 3), lacking), min_size=1, max_size=5)
images = st.sampled_from(["", "", "alpine", "/i.sif", "/i", "oci-archive:/i", "no image"])
addresses = st.sampled_from([{}, {}, {"a": "/a"}, {"a": "s3://mill/a"}])
tasks = st.builds(
    TaskTemplate,
    command=st.just(("true",)),
    image=images,
    secrets=st.sampled_from([{}, {"A": "a"}]),
    bundle=st.sampled_from(["", "0" * 64]),
    inputs=addresses,
    outputs=addresses,
)
jobs = st.builds(
    lambda cpus, nodes, signal, task: job(cpus, nodes=nodes, stop_signal=signal, task=task),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from(["TERM", "USR1"]),
    tasks,
)


@given(machines, st.lists(jobs, min_size=1, max_size=6))
def test_placed_means_carried_and_refused_means_by_nobody(nodes, specs):
    here = world(
        *(node(f"n{i}", cpus, lacks=tuple(lacks)) for i, (cpus, lacks) in enumerate(nodes))
    )
    for index, spec in enumerate(specs):
        needs = set(needs_of(spec))
        large = [set(lacks) for cpus, lacks in nodes if cpus * 1000 >= spec.resources.cpu_milli]
        able = [lacks for lacks in large if not needs & (lacks | set(NOWHERE))]
        reasons = possible(here.state, submission("x", spec), here.policy)
        assert (reasons == ()) is (len(able) >= spec.nodes)
        assert ("CannotCarry" in [each.code for each in reasons]) is bool(large and not able)
        here.submit(f"w{index}", spec)
    for place in here.cycle().places:
        needs = set(needs_of(here.state.workloads[place.workload].submission.spec))
        for task in place.tasks:
            assert not needs & set(nodes[int(task.node[1:])][1])


@given(st.sampled_from(Form), st.sets(st.sampled_from(sorted(Form))))
def test_an_image_is_lacking_exactly_where_its_form_is_not_taken(form, taken):
    assert (NEED_BY_FORM[form] in image_lacks(taken)) is (form not in taken)
