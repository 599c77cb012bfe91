"""What the engine suite needs of each engine: a way to make programs, wait, and count effects."""

import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from moulin.domain.ids import (
    NodeId,
    OrganisationId,
    ProjectId,
    StepId,
    WorkloadId,
    attempt_id,
    step_id,
)
from moulin.domain.observation import NodeCapacity, Observation, TaskPhase
from moulin.domain.plan import StartStep
from moulin.domain.workload import EndpointSpec, Resources, TaskTemplate
from moulin.engines.kubernetes.api import Api, open_client
from moulin.engines.kubernetes.engine import KubernetesEngine
from moulin.engines.kubernetes.manifests import KubernetesPool, object_name
from moulin.engines.local.cgroup import CgroupBase
from moulin.engines.local.engine import LocalEngine
from moulin.engines.local.nodes import divide_machine
from moulin.engines.ray.engine import RayEngine
from moulin.engines.simulated.engine import SimulatedEngine
from moulin.engines.simulated.world import World
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.settings import ANY_PYTHON, SlurmSettings
from moulin.engines.slurm.transport import LocalTransport
from moulin.ports.engine import Engine
from tests.containers import Containers
from tests.kubernetes_standin import KUBECONFIG, Standin
from tests.ray_cluster import RayCluster
from tests.slurm_cluster import SlurmCluster

WAIT_S = 60.0
ENDED = (TaskPhase.EXITED, TaskPhase.GONE, TaskPhase.ABSENT)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def nodes_of_this_machine(count: int = 1) -> tuple[NodeCapacity, ...]:
    return divide_machine(
        nodes=count,
        cpu_ids=sorted(os.sched_getaffinity(0)),
        memory_bytes=4 * 10**9,
        boot_id=boot_id(),
    )


def make_step(
    name: str,
    task: TaskTemplate,
    *,
    rank: int = 0,
    nodes: Sequence[str] = ("node-0",),
    memory_bytes: int = 512 * 10**6,
    endpoint: EndpointSpec | None = None,
    stop_grace_s: int = 5,
    generation: int = 1,
) -> StartStep:
    workload = f"job_{_test_number():08x}_{name}"
    attempt = attempt_id(workload, 0, generation)
    return StartStep(
        step=step_id(attempt, rank),
        attempt=attempt,
        workload=WorkloadId(workload),
        organisation=OrganisationId("organisation"),
        project=ProjectId("project"),
        unit=0,
        generation=generation,
        rank=rank,
        nodes=tuple(NodeId(node) for node in nodes),
        devices=(),
        resources=Resources(memory_bytes=memory_bytes),
        task=task,
        endpoint=endpoint,
        stop_grace_s=stop_grace_s,
    )


def _test_number() -> int:
    """Return a number of this test: engines that outlive one are started a step once for all."""
    return zlib.crc32(os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0].encode())


def wait_until(is_true: Callable[[], bool], pause: Callable[[], None] | None = None) -> None:
    """Wait for something that must come; the bound only ends a test that already failed."""
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        (pause or (lambda: time.sleep(0.01)))()


class Bench(Protocol):
    @property
    def engine(self) -> Engine: ...

    def program(
        self, *, seconds: float = 0.0, exit_code: int = 0, ignores_term: bool = False
    ) -> TaskTemplate: ...
    def runs(self, step: StepId) -> int: ...
    def renew(self) -> None: ...
    def pause(self) -> None: ...
    def widen(self) -> None:
        """Have two nodes, `node-0` and `node-1`."""

    def cut(self) -> None:
        """Take away what the engine sees its tasks by; they go on."""

    def mend(self) -> None:
        """Give it back."""


def phase(bench: Bench, step: StepId) -> TaskPhase:
    return bench.engine.observe([step])[0].phase


def wait_for(bench: Bench, step: StepId, *phases: TaskPhase) -> Observation:
    wait_until(lambda: phase(bench, step) in phases, bench.pause)
    return bench.engine.observe([step])[0]


class RealClock:
    def now_ns(self) -> int:
        return time.time_ns()


@dataclass
class ManualClock:
    at_ns: int = 1_700_000_000_000_000_000

    def now_ns(self) -> int:
        return self.at_ns


@dataclass
class EffectsInFiles:
    """Programs that append a line to a file named after their step: what really ran is counted there."""

    directory: Path

    def __post_init__(self) -> None:
        (self.directory / "effects").mkdir()

    def program(
        self, *, seconds: float = 0.0, exit_code: int = 0, ignores_term: bool = False
    ) -> TaskTemplate:
        trap = "trap '' TERM; " if ignores_term else ""
        effects = self.directory / "effects"
        script = f'{trap}echo ran >> {effects}/"$MOULIN_STEP_ID"; sleep {seconds}; exit {exit_code}'
        return TaskTemplate(command=("sh", "-c", script))

    def runs(self, step: StepId) -> int:
        file = self.directory / "effects" / step
        return len(file.read_text().splitlines()) if file.exists() else 0

    def shell(self, script: str) -> TaskTemplate:
        """Return a program that runs in the folder of effects."""
        made = self.program()
        return replace(made, command=("sh", "-c", script), workdir=str(self.directory / "effects"))

    def effect(self, name: str) -> str:
        """Return what programs wrote into a file of that folder, empty before they did."""
        file = self.directory / "effects" / name
        return file.read_text() if file.exists() else ""

    def widen(self) -> None:
        return


@dataclass
class LocalBench(EffectsInFiles):
    """The local engine."""

    cgroup: CgroupBase | None
    nodes: tuple[NodeCapacity, ...] = field(default_factory=nodes_of_this_machine)
    engine: LocalEngine = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.renew()

    def renew(self) -> None:
        self.engine = LocalEngine(
            self.directory, clock=RealClock(), nodes=self.nodes, cgroup=self.cgroup
        )

    def pause(self) -> None:
        time.sleep(0.01)

    def widen(self) -> None:
        self.nodes = nodes_of_this_machine(2)
        self.renew()

    def cut(self) -> None:
        (self.directory / "spool").rename(self.directory / "away")
        (self.directory / "spool").mkdir()

    def mend(self) -> None:
        (self.directory / "spool").rmdir()
        (self.directory / "away").rename(self.directory / "spool")

    def close(self) -> None:
        """End what a failed test left running."""
        for step in self.engine.steps():
            self.engine.stop(step, 0)
        wait_until(lambda: all(o.phase in ENDED for o in self.engine.observe(self.engine.steps())))


@dataclass
class ImageBench(LocalBench):
    """The local engine with an image around every program."""

    containers: Containers = field(kw_only=True)

    def renew(self) -> None:
        self.engine = LocalEngine(
            self.directory,
            clock=RealClock(),
            nodes=self.nodes,
            cgroup=self.cgroup,
            environment=self.containers.environment,
        )

    def program(
        self, *, seconds: float = 0.0, exit_code: int = 0, ignores_term: bool = False
    ) -> TaskTemplate:
        made = super().program(seconds=seconds, exit_code=exit_code, ignores_term=ignores_term)
        return replace(made, image=self.containers.image, workdir=str(self.directory / "effects"))

    def close(self) -> None:
        """Beside what every bench does, see that no container is left on record."""
        super().close()
        if self.containers.is_podman:
            left = self.containers.left()
            assert left == [], left


@dataclass
class SimulatedBench:
    """The simulated engine; what really happened is in the world's history."""

    clock: ManualClock = field(default_factory=ManualClock)
    world: World = field(init=False)
    engine: SimulatedEngine = field(init=False)

    def __post_init__(self) -> None:
        nodes = [
            NodeCapacity(
                node=NodeId(f"node-{index}"),
                cpu_milli=8000,
                memory_bytes=10**10,
                machine_class="simulated",
                boot_id="boot",
            )
            for index in range(2)
        ]
        self.world = World(self.clock, nodes)
        self.renew()

    def renew(self) -> None:
        self.engine = SimulatedEngine(self.world)

    def program(
        self, *, seconds: float = 0.0, exit_code: int = 0, ignores_term: bool = False
    ) -> TaskTemplate:
        env = {"MOULIN_SIMULATED_S": str(seconds), "MOULIN_SIMULATED_EXIT": str(exit_code)}
        if ignores_term:
            env["MOULIN_SIMULATED_IGNORES_TERM"] = "1"
        return TaskTemplate(command=("program",), env=env)

    def runs(self, step: StepId) -> int:
        return sum(run.step == step for run in self.world.history)

    def pause(self) -> None:
        self.clock.at_ns += 100_000_000

    def widen(self) -> None:
        return

    def cut(self) -> None:
        self.world.set_engine_reachable(False)

    def mend(self) -> None:
        self.world.set_engine_reachable(True)

    def close(self) -> None:
        return


@dataclass
class SlurmBench(EffectsInFiles):
    """A real Slurm on this machine."""

    cluster: SlurmCluster
    is_delegated: bool = False
    constraint: str = ""
    python: str = ANY_PYTHON
    engine: SlurmEngine = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.renew()

    def renew(self) -> None:
        self._open(self.cluster.environment)

    def cut(self) -> None:
        self._open({"PATH": "/nowhere"})  # as where no command of Slurm can be run

    def mend(self) -> None:
        self.renew()

    def _open(self, environment: Mapping[str, str]) -> None:
        settings = SlurmSettings(
            directory=self.directory,
            machine_class="here",
            accelerator_class="H100",
            is_delegated=self.is_delegated,
            prefix="node-" if self.is_delegated else "",
            constraint=self.constraint,
            python=self.python,
            poll_s=0.2,
        )
        driver = Commands(LocalTransport(environment))
        self.engine = SlurmEngine(settings, driver, clock=RealClock())

    def pause(self) -> None:
        time.sleep(0.05)

    def close(self) -> None:
        """Cancel what is left; nobody waits for it."""
        for step in self.engine.steps():
            self.engine.stop(step, 0)


@dataclass
class RayBench(EffectsInFiles):
    """A real Ray of two nodes on this machine."""

    cluster: RayCluster
    engine: RayEngine = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.engine = self.cluster.engine(self.directory / "book")

    def renew(self) -> None:
        self.engine.close()
        self.engine = self.cluster.engine(self.directory / "book")

    def cut(self) -> None:
        self.engine.close()
        nowhere = "http://127.0.0.1:1"
        pool = replace(self.cluster.pool, address=nowhere, agent_address=nowhere)
        self.engine = RayEngine(self.directory / "book", pool=pool, clock=RealClock())

    def mend(self) -> None:
        self.renew()

    def pause(self) -> None:
        time.sleep(0.02)

    def close(self) -> None:
        """End what the test left running, so that the next finds the cluster empty."""
        for step in self.engine.steps():
            self.engine.stop(step, 0)
        wait_until(lambda: not self.engine.steps())
        self.engine.close()


@dataclass
class KubernetesBench:
    """The Kubernetes engine on a stand-in: nothing runs, `pause` plays what a cluster would do."""

    directory: Path
    cluster: Standin
    clock: ManualClock = field(default_factory=ManualClock)
    engine: KubernetesEngine = field(init=False)
    _started: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("0", "1"):
            self.cluster.add_node(name)
        (self.directory / "kubeconfig").write_text(
            KUBECONFIG.format(address=self.cluster.address), "utf-8"
        )
        self.renew()

    def renew(self) -> None:
        pool = KubernetesPool(name="node", machine_class="here")
        api = Api(open_client(str(self.directory / "kubeconfig"), ""), pool.namespace)
        self.engine = KubernetesEngine(pool, api, clock=self.clock)

    def program(
        self, *, seconds: float = 0.0, exit_code: int = 0, ignores_term: bool = False
    ) -> TaskTemplate:
        env = {"SECONDS": str(seconds), "STATUS": str(exit_code)}
        return TaskTemplate(command=("program",), env=env, image="registry.example/program:1")

    def runs(self, step: StepId) -> int:
        return int(step in self._started)

    def pause(self) -> None:
        """Let pods that wait begin, and those whose time is over end."""
        self.clock.at_ns += 100_000_000
        now_s = self.clock.at_ns / 1e9
        for name, pod in self.cluster.objects["pods"].items():
            step = pod["metadata"]["labels"]["moulin-step"]
            env = self.cluster.objects["secrets"][object_name(StepId(step))]["stringData"]
            if step not in self._started:
                self._started[step] = now_s
                self.cluster.logs[name] = b"ran\n"
                self.cluster.runs(step)
            elif now_s >= self._started[step] + float(env["SECONDS"]):
                self.cluster.ends(step, int(env["STATUS"]))

    def widen(self) -> None:
        return

    def cut(self) -> None:
        self.cluster.status = 503

    def mend(self) -> None:
        self.cluster.status = 0

    def close(self) -> None:
        return
