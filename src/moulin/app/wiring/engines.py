"""Makes the engine of each pool, once: the one list of engines that there are."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from moulin.app.clock import SystemClock
from moulin.app.meters import SIMULATED_CLASS
from moulin.app.wiring.kubernetes import kubernetes_engine
from moulin.app.wiring.local import local_engine
from moulin.app.wiring.pool_settings import whole_number
from moulin.app.wiring.ray import ray_engine
from moulin.app.wiring.slurm import SLURM_PLACE, SlurmWays, slurm_engine
from moulin.domain.errors import (
    EngineRefused,
    InvalidSpec,
)
from moulin.domain.factory import Pool
from moulin.domain.ids import NodeId
from moulin.domain.observation import NodeCapacity
from moulin.engines.simulated.engine import SimulatedEngine
from moulin.engines.simulated.world import World
from moulin.ports.engine import Engine
from moulin.ports.registrations import Registrations

SIMULATED_NODES_MAX: Final = 200_000
# The settings that say which machines a pool has, and what those are.
SHARED_PLACES: Final[Mapping[str, tuple[Sequence[str], str]]] = {
    "slurm": (SLURM_PLACE, "Slurm partition"),
    "ray": (("address",), "Ray cluster"),
    "kubernetes": (("kubeconfig", "context", "selector"), "Kubernetes nodes"),
}


class EngineBook:
    """Makes the engine of a pool once and keeps it; another engine or setting is another engine."""

    def __init__(
        self, data_dir: Path, clock: SystemClock, registrations: Registrations | None = None
    ) -> None:
        """Without `registrations` no replica stands behind a door of its own."""
        self._data_dir = data_dir
        self._clock = clock
        self._registrations = registrations
        self._engines: dict[tuple[str, ...], Engine] = {}
        self._slurm_ways = SlurmWays(data_dir / "slurm")
        self._makers: dict[str, Callable[[Pool], Engine]] = {
            "local": self._local,
            "simulated": self._simulated,
            "slurm": self._slurm,
            "ray": self._ray,
            "kubernetes": self._kubernetes,
        }

    def engine_for(self, pool: Pool) -> Engine:
        """Return the pool's engine.

        Raises `EngineRefused` for an engine that does not exist, `InvalidSpec` for settings it
        cannot have.
        """
        key = (pool.name, pool.engine, *(f"{k}={v}" for k, v in sorted(pool.settings.items())))
        if key not in self._engines:
            maker = self._makers.get(pool.engine)
            if maker is None:
                raise EngineRefused(
                    f"connect pool {pool.name!r}: there is no engine {pool.engine!r}",
                    hint=f"engines: {', '.join(sorted(self._makers))}",
                )
            self._engines[key] = maker(pool)
        return self._engines[key]

    @staticmethod
    def check_pools(pools: Sequence[Pool]) -> None:
        """Raise `InvalidSpec` when several pools would each count all of the same machines."""
        clusters: dict[tuple[str, ...], str] = {}
        for pool in pools:
            names, title = SHARED_PLACES.get(pool.engine, ((), ""))
            cluster = (pool.engine, *(pool.settings.get(name, "") for name in names))
            other = clusters.setdefault(cluster, pool.name)
            if names and other != pool.name:
                raise InvalidSpec(
                    f"connect pools {other}, {pool.name}: both are the same {title}",
                    hint=f"keep one of them, or give each a `{names[-1]}` of its own",
                    details={"pools": [other, pool.name]},
                )
        here = [pool.name for pool in pools if pool.engine == "local"]
        if len(here) > 1:
            raise InvalidSpec(
                f"connect pools {', '.join(here)}: engine local is this one machine, and each of"
                " them would count all of it",
                hint="keep one of them; its setting `nodes` divides the machine into nodes",
                details={"pools": here},
            )

    def _local(self, pool: Pool) -> Engine:
        return local_engine(self._data_dir, self._clock, whole_number(pool, "nodes", 1), pool.name)

    def _simulated(self, pool: Pool) -> Engine:
        count = whole_number(pool, "nodes", 1)
        if not 0 < count <= SIMULATED_NODES_MAX:
            raise EngineRefused(
                f"simulate {count} nodes in pool {pool.name!r}",
                hint=f"use 1 to {SIMULATED_NODES_MAX}",
            )
        cpus = whole_number(pool, "cpus", 64)
        nodes = [
            NodeCapacity(
                node=NodeId(f"{pool.name}-{index:05d}"),
                cpu_milli=cpus * 1000,
                memory_bytes=whole_number(pool, "memory_bytes", 256 * 10**9),
                machine_class=SIMULATED_CLASS,
                accelerators=whole_number(pool, "accelerators", 0),
                accelerator_class=pool.settings.get("accelerator_class", ""),
                boot_id=SIMULATED_CLASS,
            )
            for index in range(count)
        ]
        return SimulatedEngine(World(self._clock, nodes))

    def _slurm(self, pool: Pool) -> Engine:
        directory = self._data_dir / "slurm" / pool.name
        return slurm_engine(directory, self._clock, pool, self._registrations, self._slurm_ways)

    def _ray(self, pool: Pool) -> Engine:
        return ray_engine(self._data_dir / "ray" / pool.name, self._clock, pool)

    def _kubernetes(self, pool: Pool) -> Engine:
        return kubernetes_engine(self._clock, pool)
