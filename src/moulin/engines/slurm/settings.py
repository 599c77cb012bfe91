"""What an operator says of a Slurm pool; only names and amounts, nothing is asked or decided here."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """One pool over one partition (empty: the cluster's default).

    `directory` is seen at the same path by the control plane and by every node. `prefix` goes before
    the names of Slurm's nodes, so that two clusters may both have an `n1`. `accelerator_class` is what
    its GPUs are called here; empty: as Slurm calls their type. `python` is any Python from 3.6 on, on
    the nodes. `poll_s` is how long an answer of Slurm is believed. `idle_mw` and `peak_mw` are of one
    node, as the operator states them.
    """

    directory: Path
    partition: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    prefix: str = ""
    is_delegated: bool = False
    machine_class: str = ""
    accelerator_class: str = ""
    python: str = "python3"
    poll_s: float = 1.0
    idle_mw: int = 0
    peak_mw: int = 0
