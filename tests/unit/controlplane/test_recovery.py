"""What the control plane does after its store failed, its clock went back, or a gateway said goodbye."""

import random

import pytest

from moulin.controlplane.commands import Answer, ApplyFactory, SyncGateway
from moulin.controlplane.run import turn
from moulin.domain.errors import StoreUnavailable
from moulin.domain.gateway_events import GatewayEpochClosed
from moulin.domain.snapshot import SyncReply, SyncRequest, Want
from tests.simulation import scenario
from tests.simulation.faults import Faults
from tests.simulation.gateway import PRINCIPAL
from tests.simulation.process import Machine, Process
from tests.simulation.world import SECOND, Dice, Signer, TrueClock, memory_disk

GATEWAY, EPOCH = "gw", 7


@pytest.fixture
def machine():
    faults = Faults()
    return Machine(
        disk=memory_disk(),
        clock=TrueClock(),
        faults=faults,
        dice=Dice(random.Random(1), faults),
        signer=Signer(1, faults),
        places={},
    )


def lead(machine: Machine, error_ns: int = 0) -> Process:
    process = Process(machine, error_ns, boot=1)
    assert process.start()
    return process


def declare(process: Process) -> None:
    plan = scenario.scenario(random.Random(1))
    objects = tuple(each for each in plan.objects if type(each).__name__ != "Pool")
    process.inbox.call(
        ApplyFactory(principal=scenario.OPERATOR, managed_by="file", objects=objects)
    )


def sync(process: Process, **more: object) -> Answer:
    request = SyncRequest(gateway=GATEWAY, epoch=EPOCH, records_epoch=EPOCH, **more)  # type: ignore[arg-type]
    future = process.inbox.call(SyncGateway(principal=PRINCIPAL, request=request))
    assert process.plane
    turn(process.plane, 0.0)
    return future.result()


def test_no_cycle_runs_on_books_that_are_ahead_of_the_log(machine):
    process = lead(machine)
    plane = process.plane
    assert plane
    declare(process)
    machine.faults.commits_failing, machine.faults.reads_failing = 1, 2
    for _ in range(3):  # the commit, then twice the log
        with pytest.raises(StoreUnavailable):
            turn(plane, 0.0)
        assert plane.is_ahead
    declare(process)
    turn(plane, 0.0)
    assert not plane.is_ahead
    assert plane.books.sequence == machine.disk.reader.last_sequence() == 2


def test_the_log_never_goes_back_in_time_with_the_clock(machine):
    first = lead(machine)
    declare(first)
    assert first.plane
    turn(first.plane, 0.0)
    first.end()
    second = lead(machine, error_ns=-60 * SECOND)
    assert second.plane
    machine.clock.advance(SECOND)
    sync(second)
    at_ns = [event.at_ns for event in machine.disk.reader.events(0)]
    assert at_ns == sorted(at_ns)
    assert at_ns[-1] == at_ns[0] + SECOND, "time goes on from the last event"


def test_a_gateway_that_is_done_leaves_no_escrow(machine):
    process = lead(machine)
    declare(process)
    wants = (Want(project="web", amount_neur=5),)
    granted = sync(process, wants=wants)
    assert isinstance(granted, SyncReply)
    assert granted.grants[0].amount_neur == 5
    sync(process, is_epoch_complete=True)
    assert process.plane
    assert process.plane.books.balances.escrow == {}
    last = list(machine.disk.reader.events(0))[-1].payload
    assert last == GatewayEpochClosed(gateway=GATEWAY, gateway_epoch=EPOCH)
    late = sync(process, wants=wants)
    assert isinstance(late, SyncReply)
    assert late.grants[0].amount_neur == 0
