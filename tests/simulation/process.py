"""One control plane's process: it takes the lead, turns, and can die at any write or effect."""

from dataclasses import dataclass, field, replace
from typing import cast

from moulin.controlplane.inbox import Inbox
from moulin.controlplane.plane import Plane, PlaneSettings, Ports
from moulin.controlplane.recover import take_lead
from moulin.controlplane.run import turn
from moulin.domain.errors import DiskFull, StaleGeneration, StoreUnavailable
from moulin.domain.ids import NodeId
from moulin.ports.store import Store
from moulin.scheduler import SchedulerPolicy
from tests.simulation.faults import Crash, Faults
from tests.simulation.world import (
    FACTORY,
    SECOND,
    Dice,
    Disk,
    Engines,
    GuardedStore,
    Meters,
    Place,
    ProcessClock,
    Shelf,
    Signer,
    TrueClock,
)

SETTINGS = PlaneSettings(
    factory_name=FACTORY,
    version="sim",
    cycle_wait_s=0.0,
    observe_period_s=0.2,
    sweep_period_s=10.0,
    capacity_period_s=2.0,
    metering_interval_s=5.0,
    snapshot_staleness_s=60,
)


@dataclass(slots=True, kw_only=True)
class Machine:
    """What a control plane's process is started on; all of it outlives the process.

    `broken` are nodes whose counter cannot be read.
    """

    disk: Disk
    clock: TrueClock
    faults: Faults
    dice: Dice
    signer: Signer
    places: dict[str, Place]
    policy: SchedulerPolicy = field(default_factory=SchedulerPolicy)
    broken: set[NodeId] = field(default_factory=set)


class Process:
    """A process that leads once `start` returned. `error_ns` is how wrong its clock is."""

    def __init__(self, machine: Machine, error_ns: int, boot: int) -> None:
        self.machine = machine
        self.inbox = Inbox()
        self.engines = Engines(machine.places, machine.faults)
        self._store = GuardedStore(machine.disk.open(), machine.faults)
        self._settings = _settings(boot)
        self._ports = Ports(
            store=cast("Store", self._store),
            clock=ProcessClock(machine.clock, error_ns),
            ids=machine.dice,
            engine_for=self.engines.engine_for,
            launcher=Shelf(),
            meter=Meters(machine.places, machine.clock, machine.faults, machine.broken),
            signer=machine.signer,
        )
        self.plane: Plane | None = None
        self.is_alive = True

    def start(self) -> bool:
        """Take the lead; False when the process died or gave up on the way."""
        try:
            self.plane = take_lead(self._ports, self._settings, self.machine.policy, self.inbox)
        except (Crash, StoreUnavailable, DiskFull):
            self.end()
        return self.is_alive

    def turn(self) -> None:
        """Run one cycle as the real loop does; it waits, goes on or gives up as that one does."""
        assert self.plane is not None
        try:
            turn(self.plane, 0.0)
        except (Crash, StaleGeneration):
            self.end()
        except (StoreUnavailable, DiskFull):
            self.machine.clock.advance(SECOND // 10)

    def end(self) -> None:
        """End the process: its store lets go of the lead, everything in memory is gone."""
        self.is_alive = False
        self._store.inner.close()


def _settings(boot: int) -> PlaneSettings:
    return replace(SETTINGS, boot_id=f"boot-{boot}")
