"""Looks at nodes in quarantine that nobody reads: a step of nobody's, read and forgotten."""

import json
from dataclasses import replace

import pytest

from moulin.domain.errors import EngineRefused
from moulin.domain.health import DeviceReading, NodeReading
from moulin.domain.node_events import NodeChecked
from moulin.domain.observation import LogChunk
from moulin.engines.simulated.world import DURATION_VARIABLE, EXIT_VARIABLE
from moulin.scheduler import node_views
from tests.integration.controlplane.bench import Bench, Machines

CALM_S = 305


class Floor:
    """What looks at the nodes of a floor find."""

    def __init__(self, mill: Bench, monkeypatch) -> None:
        self.mill = mill
        self.started: list = []
        self.devices: list[dict] | None = [{"index": 0, "uuid": "GPU-0"}]
        self.seconds = "1"
        self.status = "0"
        self.is_refused = False
        start = Machines.start

        def start_look(engine: Machines, step):
            self.started.append(step)
            if self.is_refused:
                raise EngineRefused("no room for anything")
            told = {DURATION_VARIABLE: self.seconds, EXIT_VARIABLE: self.status}
            return start(engine, replace(step, task=replace(step.task, env=told)))

        monkeypatch.setattr(Machines, "start", start_look)
        monkeypatch.setattr(Machines, "logs", self._logs)
        ports = replace(mill.plane.ports, look_program="LOOK")
        mill.plane.ports = ports

    def _logs(self, _step, _cursor, _limit) -> LogChunk:
        data = json.dumps({"at_ns": 5, "devices": self.devices}).encode()
        return LogChunk(data=data, next_cursor=len(data), is_end=True)

    @property
    def node(self):
        return self.mill.floor.world.capacity()[0].node

    @property
    def verdict(self) -> str:
        [view] = [v for v in node_views(self.mill.plane.books.schedule) if v.node == self.node]
        return view.health.value


@pytest.fixture
def floor(mill: Bench, monkeypatch) -> Floor:
    """A node whose device broke under work, and of which nothing is read since."""
    made = Floor(mill, monkeypatch)
    device = DeviceReading(index=0, uuid="GPU-0")
    silent = NodeReading(node=made.node, at_ns=0, is_partial=True)
    for devices in ((device,), (replace(device, is_remap_failed=True),), None):
        mill.floor.world.set_reading(replace(silent, devices=devices))
        mill.turns(2, 1.0)
    assert made.verdict == "quarantined"
    return made


def test_a_node_comes_back_after_a_look_that_shows_nothing(floor):
    floor.mill.turns(CALM_S - 20, 1.0)
    assert not floor.started
    floor.mill.turns(40, 1.0)
    assert floor.verdict == "healthy"
    [step] = floor.started
    assert step.nodes == (floor.node,)
    assert step.task.command == ("python3", "-c", "LOOK", "once")
    assert [each.is_passed for each in floor.mill.events(NodeChecked)] == [True]
    assert step.step not in floor.mill.floor.world.started_steps()


@pytest.mark.parametrize(
    "found",
    [
        {"devices": None},
        {"devices": [{"index": 0, "uuid": "GPU-0", "is_remap_failed": True}]},
        {"devices": [{"index": 1, "uuid": "GPU-1"}]},
        {"status": "1"},
        {"is_refused": True},
        {"seconds": "100000"},
    ],
)
def test_a_look_that_shows_too_little_is_repeated_later_and_the_node_stays(floor, found):
    for name, value in found.items():
        setattr(floor, name, value)
    floor.mill.turns(CALM_S + 500, 1.0)
    assert floor.verdict == "quarantined"
    assert len(floor.started) == 1
    floor.mill.turns(1500, 1.0)
    assert floor.verdict == "quarantined"
    assert len(floor.started) > 1
    running = floor.mill.floor.world.started_steps()
    assert len([step for step in running if step.startswith("look_")]) <= 1


def test_nobody_looks_where_work_still_runs_or_without_a_program(floor):
    floor.mill.plane.ports = replace(floor.mill.plane.ports, look_program="")
    floor.mill.turns(CALM_S + 100, 1.0)
    assert not floor.started
    assert not floor.mill.plane.looks
