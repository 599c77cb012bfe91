"""Real clusters for benchmarks, and the operator file that puts Moulin in front of them."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from tests.ray_cluster import RayCluster
from tests.slurm_cluster import CPUS, MEMORY_MB, TIMEOUT_S, SlurmCluster, missing_programs, running

PROJECT: Final = "default"
ZONE: Final = "hall"
FAR_ZONE: Final = "far"
FACTORY: Final = """\
organisations:
  lab: {{roles: [operator, tenant]}}
sites:
  here: {{country: FR}}
zones:
  hall: {{site: here}}
  far: {{site: here}}
machine_classes:
  this-cpu: {{title: this machine, is_accelerator: false}}
pools:
  {pools}
projects:
  default: {{organisation: lab}}
prices:
  list: {{cpu_hour: 0.02, accelerator_hour: {{H100: 2.5}}}}
"""


class Absent(Exception):
    """What a benchmark needs is not installed here; the text says what."""


@contextlib.contextmanager
def slurm(
    *,
    cpus: int = CPUS,
    memory_mb: int = MEMORY_MB,
    timeout_s: int = TIMEOUT_S,
    has_drivers: bool = False,
) -> Iterator[SlurmCluster]:
    """Run a Slurm of four nodes until the block ends; raises `Absent` where there is none."""
    missing = missing_programs()
    if missing:
        raise Absent(f"no Slurm ({', '.join(missing)}): apt-get install slurm-wlm munge")
    make = partial(
        SlurmCluster,
        cpus=cpus,
        memory_mb=memory_mb,
        timeout_s=timeout_s,
        has_drivers=has_drivers,
    )
    with running(make) as cluster:
        yield cluster


def local_pool(nodes: int) -> str:
    """Return the pool of this machine."""
    return (
        "machine: {zone: hall, engine: local, machine_class: this-cpu,"
        f" settings: {{nodes: {nodes}}}}}"
    )


def slurm_pool(
    cluster: SlurmCluster,
    name: str = "hpc",
    *,
    zone: str = ZONE,
    partition: str = "batch",
    ssh: str = "",
) -> str:
    """Return the pool of one of a cluster's partitions, reached here or over SSH."""
    conf = cluster.environment["SLURM_CONF"]
    reached = f', ssh: "{ssh}"' if ssh else ""
    return (
        f"{name}: {{zone: {zone}, engine: slurm, machine_class: H100,"
        f" settings: {{partition: {partition}, conf: {conf}, poll_ms: 500{reached}}}}}"
    )


def ray_pool(cluster: RayCluster) -> str:
    """Return the pool of a Ray cluster."""
    return (
        "node: {zone: hall, engine: ray, machine_class: H100, settings: {"
        f'address: "{cluster.pool.address}",'
        f" agent_port: {cluster.pool.agent_address.rpartition(':')[2]},"
        f' token_file: "{cluster.token_file}", spool: "{cluster.pool.spool}"}}}}'
    )


def write_factory(folder: Path, pools: str) -> Path:
    """Write the operator file of pools and return its path."""
    path = folder / "factory.yaml"
    path.write_text(FACTORY.format(pools=pools))
    return path
