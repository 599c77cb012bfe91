"""What an operator says of a Slurm pool; only names and amounts, nothing is asked or decided here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

# The system's own where there is one, else the first in PATH.
ANY_PYTHON: Final = "python3"
# In a pool's spool: the name under which its jobs are known in Slurm.
OWNER: Final = ".owner"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """One pool over one partition (empty: the cluster's default).

    `directory` is seen at the same path by the control plane and by every node, and is this pool's own.
    With `checkpoints` those of its jobs are there, with `health` what readers say of machines: several
    pools share these, as a job may go on in another one and a machine is in several. `prefix` goes before
    the names of Slurm's nodes, so that two clusters may both have an `n1`. `accelerator_class` is what
    its GPUs are called here; empty: as Slurm calls their type. `python` is any Python from 3.8 on, on
    the nodes. `poll_s` is how long an answer of Slurm is believed. `idle_mw` and `peak_mw` are of one
    node, as the operator states them. With `reads_nodes` a small program beside each task reads how
    well its node is.

    `images` is what nodes run images with: `pyxis`, or `apptainer` or its path; empty: found out.

    `replica_time_limit_s` is the longest that a replica of an endpoint may run here, 0: as long as the
    partition lets it. `control_url` is where replicas register, as nodes reach it, and `control_ca` the
    certificate that it is trusted by; empty: they say in their files alone that they serve.

    With `drains` a node in quarantine is drained in Slurm itself.

    With `is_mirrored` the jobs of a project go to the account that mirrors it, not to `account`.
    """

    directory: Path
    checkpoints: Path | None = None
    health: Path | None = None
    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    prefix: str = ""
    is_delegated: bool = False
    machine_class: str = ""
    accelerator_class: str = ""
    python: str = ANY_PYTHON
    poll_s: float = 1.0
    idle_mw: int = 0
    peak_mw: int = 0
    images: str = ""
    replica_time_limit_s: int = 0
    control_url: str = ""
    control_ca: str = ""
    reads_nodes: bool = True
    drains: bool = False
    is_mirrored: bool = False
