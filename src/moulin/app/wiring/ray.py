"""Fills in the engine of a Ray cluster."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from moulin.app.clock import SystemClock
from moulin.app.join import HeadStarter, ray_place
from moulin.app.wiring.pool_settings import check_settings, whole_number
from moulin.domain.factory import Pool
from moulin.domain.observation import NodeCapacity
from moulin.energy import cpu_power
from moulin.engines.ray.engine import RayEngine, RayPool
from moulin.engines.ray.package import pack

# What a pool with `engine: ray` can be told, and what a server of its cluster runs: the local engine.
RAY_SETTINGS: Final = (
    *("address", "agent_port", "gcs_port", "head", "python", "spool", "token_file"),
)
RAY_HEAD: Final = "here"  # the one value of `head`: start it on this machine when it is not there
RAY_AGENT_PORT: Final = 8266
MEMBER: Final = "moulin.engines.local.member:LocalMember"
MEMBER_PACKAGES: Final = (
    *("moulin.domain", "moulin.ports"),
    *("moulin.engines.local", "moulin.engines.task", "moulin.engines.ray"),
)


def ray_engine(directory: Path, clock: SystemClock, pool: Pool) -> RayEngine:
    """Return the engine of a Ray cluster; `directory` keeps which node each step was given to.

    Raises `InvalidSpec` for settings that there are not, and for a delegated pool.
    """
    check_settings(pool, RAY_SETTINGS)
    place = ray_place(pool.name, pool.settings)
    port = whole_number(pool, "agent_port", RAY_AGENT_PORT)
    reached = RayPool(
        name=pool.name,
        address=place.address,
        agent_address=place.at(port),
        token_file=place.token_file,
        package=pack(MEMBER_PACKAGES),
        opens=MEMBER,
        machine_class=pool.machine_class,
        spool=pool.settings.get("spool", ""),
        python=pool.settings.get("python", "python"),
    )
    revive = HeadStarter(place, directory) if pool.settings.get("head") == RAY_HEAD else None
    return RayEngine(
        directory / "steps", pool=reached, clock=clock, rate=_with_cpu_power, revive=revive
    )


def _with_cpu_power(node: NodeCapacity, cpu_model: str) -> NodeCapacity:
    power = cpu_power(cpu_model, node.cpu_milli)
    return replace(
        node,
        idle_mw=power.idle_mw,
        peak_mw=power.peak_mw,
        power_source=power.source,
        power_quality=power.quality,
        power_uncertainty_ppm=power.uncertainty_ppm,
    )
