"""What engines cannot carry, through the whole control plane: refused before it waits, or placed elsewhere."""

from dataclasses import replace

import pytest

from moulin.controlplane.commands import ExplainWorkload, TryWorkload
from moulin.domain.errors import Refused
from moulin.domain.events import AttemptPlaced, NodeJoined, WorkloadRefused
from moulin.domain.factory import Pool, Zone
from moulin.domain.ids import ProjectId
from moulin.domain.needs import HINTS, Need
from moulin.domain.reasons import ReasonCode
from moulin.domain.workload import Where
from moulin.engines.simulated.world import World
from tests.integration.controlplane.bench import (
    ADMIN,
    Bench,
    Machines,
    endpoint,
    factory,
    job,
    machines_of,
)


class Limited(Machines):
    """Machines that cannot carry `lacks`."""

    lacks: tuple[Need, ...] = (Need.FOLDER, Need.ENDPOINT, Need.REGISTRY_IMAGE)

    def capacity(self):
        return tuple(replace(node, lacks=self.lacks) for node in super().capacity())

    def anew(self):
        return Limited(self.world)


@pytest.fixture
def limited() -> Bench:
    """A factory whose only pool, `floor`, carries neither folders, endpoints nor images."""
    bench = Bench()

    def engine_for(pool):
        if pool.name not in bench.machines:
            made = Limited if pool.name == "floor" else Machines
            bench.machines[pool.name] = made(World(bench.clock, machines_of(pool.name, 2, 4)))
        return bench.machines[pool.name]

    bench.connect = engine_for
    bench.apply(*factory())
    bench.turn()
    return bench


def in_image(seconds=1, **more):
    spec = job(seconds, **more)
    assert spec.task is not None
    return replace(spec, task=replace(spec.task, image="alpine"))


def trial(bench, spec):
    return bench.tell(TryWorkload(principal=ADMIN, project=ProjectId("atelier"), spec=spec))


def test_what_no_pool_carries_is_refused_when_it_is_submitted(limited):
    with pytest.raises(Refused, match="it needs an image, which none of the 2") as refused:
        limited.submit(in_image())
    assert refused.value.details["reasons"] == [
        {
            "code": "CannotCarry",
            "parameters": {
                "what": "an image",
                "needs": "registry-image",
                "count": "2",
                "pools": "floor",
            },
        }
    ]
    assert refused.value.hint == HINTS[Need.REGISTRY_IMAGE]
    [event] = limited.events(WorkloadRefused)
    assert event.reasons[0].code is ReasonCode.CANNOT_CARRY
    assert limited.events(AttemptPlaced) == []
    with pytest.raises(Refused, match="a model server"):
        limited.submit(endpoint())
    assert limited.submit(job()).state == "placed"


def test_a_trial_says_so_too_also_of_a_folder_that_is_not_sent(limited):
    answer = trial(limited, in_image())
    assert (answer.is_possible, answer.reasons[0].code) == (False, ReasonCode.CANNOT_CARRY)
    spec = job()
    assert spec.task is not None
    answer = trial(limited, replace(spec, task=replace(spec.task, bundle="0" * 64)))
    assert [each.parameters["needs"] for each in answer.reasons] == ["folder"]


def test_with_a_pool_that_carries_it_it_is_placed_only_there(limited):
    more = Pool(name="shed", zone="west", engine="simulated", machine_class="test-machine")
    limited.apply(*factory(zones=(Zone(name="west", site="hill"),), pools=(more,)))
    limited.turn()
    views = [limited.submit(in_image(50)) for _ in range(12)]
    limited.turn()
    nodes = {task.node for placed in limited.events(AttemptPlaced) for task in placed.tasks}
    assert nodes == {"shed-0", "shed-1"}  # full, and the others of them wait
    assert limited.floor.asked == []
    waiting = [view.id for view in views if limited.state(view.id) == "admitted"]
    said = limited.tell(ExplainWorkload(workload=waiting[0]))
    assert ReasonCode.CANNOT_CARRY not in [reason.code for reason in said.reasons]
    with pytest.raises(Refused, match="pools: floor"):
        limited.submit(in_image(where=Where(zones=("east",))))


def test_what_comes_to_be_there_counts_at_once_and_what_goes_is_said(limited):
    limited.floor.lacks = ()
    limited.turn(30)
    running = limited.submit(in_image(100))
    limited.turn()
    fill = [limited.submit(job(100, cpus=4)) for _ in range(2)]
    waiting = limited.submit(in_image(1))
    limited.turn()
    limited.floor.lacks = Limited.lacks
    limited.turn(30)
    assert [each.capacity.lacks for each in limited.events(NodeJoined)][-1] == Limited.lacks
    assert limited.state(running.id) == "running"
    said = limited.tell(ExplainWorkload(workload=waiting.id))
    assert said.reasons[0].code is ReasonCode.CANNOT_CARRY
    assert fill


def test_another_control_plane_remembers_what_nodes_lack(limited):
    limited.reopen()
    limited.turn()
    with pytest.raises(Refused, match="can carry"):
        limited.submit(in_image())
