"""A device breaks under a gang on a real Slurm: it goes on elsewhere, and the node comes back after a look.

The whole control plane decides, the nodes' drivers are replayed, and only the time that a node has to
be calm for is not waited for. On a delegated pool Slurm chooses the machines, and is kept away from
the struck one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from moulin.domain.events import AttemptPlaced
from moulin.domain.factory import Pool, PoolMode
from moulin.domain.health import Verdict
from moulin.domain.ids import NodeId
from moulin.domain.node_events import NodeChecked, NodeHealthObserved, NodeJudged
from moulin.domain.plan import StartStep
from moulin.domain.reasons import sentence
from moulin.domain.views import NodeView
from moulin.domain.workload import (
    Resources,
    Retry,
    TaskTemplate,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import LocalTransport
from moulin.engines.slurm.wellbeing import LOOK
from moulin.scheduler import node_views
from tests.conformance.engine_bench import RealClock
from tests.integration.controlplane.bench import SECOND, Bench, factory
from tests.nvml import Driver
from tests.slurm_cluster import GPUS, SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]
# What a reader leaves behind that was killed is believed for a minute and a half.
WAIT_S = 120.0
RANKS = 3
CALM_S = 300
PREFIX = "hpc-"
POOL = Pool(name="hpc", zone="east", engine="slurm", machine_class="H100")
GANG = WorkloadSpec(
    kind=WorkloadKind.JOB,
    name="a gang",
    nodes=RANKS,
    resources=Resources(cpu_milli=1000, memory_bytes=2**28, accelerators=1),
    task=TaskTemplate(command=("sleep", "1000")),
    retry=Retry(attempts_max=1),
    time_limit_s=1700,
    stop_grace_s=1,
)


class Watched(SlurmEngine):
    """An engine that says what it was asked to start."""

    started: list[StartStep]

    def start(self, step: StartStep):
        self.started.append(step)
        return super().start(step)


@dataclass
class Hall:
    """A control plane in front of a Slurm; `lead_s` is by how much its clock is ahead."""

    cluster: SlurmCluster
    engine: Watched
    mill: Bench = field(default_factory=Bench)
    lead_s: int = 0

    def open(self, pool: Pool) -> None:
        own = self.mill.engine_for
        self.mill.connect = lambda pool: self.engine if pool.engine == "slurm" else own(pool)
        self.mill.meters.is_without = True
        look = Path(LOOK).read_text("utf-8")
        self.mill.plane.ports = replace(self.mill.plane.ports, look_program=look)
        self.mill.clock.time_ns = time.time_ns()
        self.mill.apply(*factory(pools=(pool,)))

    def until(self, is_true: Callable[[], object]) -> None:
        """Let the control plane go on until something is so."""

        def turn() -> None:
            self.mill.clock.time_ns = time.time_ns() + self.lead_s * SECOND
            self.mill.turn()
            time.sleep(0.05)

            assert time.monotonic() < deadline_s, "waited in vain"

        deadline_s = time.monotonic() + WAIT_S
        while not is_true():
            turn()

    def node(self, name: str) -> NodeView:
        [found] = [n for n in node_views(self.mill.plane.books.schedule) if n.node == name]
        return found

    def placed(self, gang: str) -> AttemptPlaced:
        """Return where a gang was placed last."""
        return [p for p in self.mill.events(AttemptPlaced) if p.workload == gang][-1]

    def hosts(self, gang: str) -> list[str]:
        """Return the machines a gang runs on, by rank."""
        [unit] = self.mill.row(gang).units
        return [task.host or task.node for task in unit.tasks]

    def driver(self, machine: str) -> Driver:
        """Return what tells of a machine's devices."""
        return self.cluster.drivers[machine.removeprefix(PREFIX)]

    def runs(self, gang: str, generation: int) -> bool:
        """Say whether all tasks of a generation run."""
        [unit] = self.mill.row(gang).units
        phases = [task.phase for task in unit.tasks]
        return unit.generation == generation and phases == ["running"] * RANKS

    def is_read(self, node: str, device: int) -> bool:
        """Say whether somebody told how a device is."""
        return any(
            each.node == node and device in {it.index for it in each.reading.devices or ()}
            for each in self.mill.events(NodeHealthObserved)
        )


@pytest.fixture(params=[PoolMode.OWNED, PoolMode.DELEGATED], ids=lambda mode: mode.value)
def hall(request, tmp_path, driven_cluster):
    settings = SlurmSettings(
        directory=tmp_path,
        machine_class="H100",
        accelerator_class="H100",
        poll_s=0.2,
        prefix=PREFIX,
        is_delegated=request.param is PoolMode.DELEGATED,
    )
    way = Commands(LocalTransport(driven_cluster.environment))
    engine = Watched(settings, way, clock=RealClock())
    engine.started = []
    opened = Hall(driven_cluster, engine)
    opened.open(replace(POOL, mode=request.param))
    yield opened
    for step in engine.steps():
        engine.stop(step, 0)
    for driver in driven_cluster.drivers.values():
        driver.restart()


def test_a_gang_leaves_the_node_of_an_xid_which_comes_back_after_a_look(hall):
    gang = hall.mill.submit(GANG).id
    hall.until(lambda: hall.runs(gang, 1))
    struck = hall.hosts(gang)[1]
    [device] = hall.placed(gang).tasks[1].devices
    for machine, task in zip(hall.hosts(gang), hall.placed(gang).tasks, strict=True):
        hall.until(partial(hall.is_read, machine, task.devices[0]))
    hall.driver(struck).xid(device)

    # It is known what and where, and nothing is said against the others.
    hall.until(lambda: hall.node(struck).health is Verdict.QUARANTINED)
    reason = hall.node(struck).health_reason
    assert f"node {struck}: xid (79) at device {device}" in sentence(reason)
    ill = [n.node for n in node_views(hall.mill.plane.books.schedule) if n.evidence]
    assert ill == [struck]

    # The gang goes on as a whole, with the spare, and has not failed.
    hall.until(lambda: hall.runs(gang, 2))
    assert len({*hall.hosts(gang), struck}) == RANKS + 1
    [unit] = hall.mill.row(gang).units
    assert unit.restarts == 1

    # Nobody reads there any more, so after the calm a look at all of its devices takes it back.
    hall.driver(struck).restart()
    hall.until(lambda: hall.engine.health((NodeId(struck),))[0].devices is None)
    hall.until(lambda: not hall.node(struck).symptoms)
    assert hall.node(struck).health is Verdict.QUARANTINED
    hall.lead_s = CALM_S + 5
    hall.until(lambda: hall.node(struck).health is Verdict.HEALTHY)
    [look] = [each for each in hall.engine.started if each.workload.startswith("look_")]
    assert (look.nodes, look.devices) == ((NodeId(struck),), tuple(range(GPUS)))
    assert [(e.node, e.is_passed) for e in hall.mill.events(NodeChecked)] == [(struck, True)]
    assert [e.verdict for e in hall.mill.events(NodeJudged)] == [
        Verdict.QUARANTINED,
        Verdict.HEALTHY,
    ]
    assert hall.runs(gang, 2)
    hall.mill.stop(gang)
    hall.until(lambda: hall.mill.state(gang) == "cancelled")
