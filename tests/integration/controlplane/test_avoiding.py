"""Engines below which others choose machines hear of every quarantine, once each, and again if it failed."""

import pytest

from moulin.domain.errors import EngineUnavailable
from moulin.domain.health import DeviceReading, NodeReading
from tests.integration.controlplane.bench import Bench, Machines


class Told:
    """What an engine was told to keep away from."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.is_silent = False

    def avoid(self, nodes) -> None:
        self.calls.append(dict(nodes))
        if self.is_silent:
            raise EngineUnavailable("nobody answers")


@pytest.fixture
def told(monkeypatch) -> Told:
    made = Told()
    monkeypatch.setattr(Machines, "avoid", lambda _, nodes: made.avoid(nodes), raising=False)
    return made


def see(mill: Bench, *devices: DeviceReading) -> str:
    node = mill.floor.world.capacity()[0].node
    mill.floor.world.set_reading(NodeReading(node=node, at_ns=0, devices=devices, is_partial=True))
    return node


def broken(mill: Bench) -> str:
    see(mill, DeviceReading(index=0, uuid="GPU-0"))
    mill.turns(2, 6.0)
    return see(mill, DeviceReading(index=0, uuid="GPU-0", is_remap_failed=True))


def test_a_quarantine_is_told_once_with_its_reason_and_so_is_its_end(mill, told):
    mill.turns(3, 6.0)
    assert told.calls == [{}]  # a new engine may know of others
    node = broken(mill)
    mill.turns(4, 6.0)
    [nothing, some] = told.calls
    assert list(some) == [node]
    assert "row_remap_failed" in some[node].words
    see(mill, DeviceReading(index=0, uuid="GPU-0"))
    mill.turns(70, 6.0)
    assert told.calls == [nothing, some, {}]


def test_what_was_not_heard_is_told_again(mill, told):
    mill.turns(1, 6.0)
    told.is_silent = True
    node = broken(mill)
    mill.turns(4, 6.0)
    before = len(told.calls)
    assert before > 2
    assert list(told.calls[-1]) == [node]
    told.is_silent = False
    mill.turns(4, 6.0)
    assert len(told.calls) == before + 1


def test_a_control_plane_that_starts_again_tells_its_engines(mill, told):
    node = broken(mill)
    mill.turns(4, 6.0)
    before = len(told.calls)
    mill.reopen()
    mill.turns(2, 6.0)
    assert [list(each) for each in told.calls[before:]] == [[node]]
