"""What is read of a node's health and what is made of it: readings, symptoms, verdicts.

A reading is raw. Whether it means anything is decided from the reading before it, in the scheduler.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moulin.domain.ids import NodeId, StepId


class Signal(StrEnum):
    """What can be wrong with a node."""

    XID = "xid"
    ECC_UNCORRECTED = "ecc_uncorrected"
    ROW_REMAP_PENDING = "row_remap_pending"
    ROW_REMAP_FAILED = "row_remap_failed"
    DEVICE_MISSING = "device_missing"
    NVLINK_DOWN = "nvlink_down"
    THERMAL = "thermal"
    POWER_BRAKE = "power_brake"
    MEMORY_UNCORRECTED = "memory_uncorrected"
    MEMORY_MISSING = "memory_missing"
    DISK_FULL = "disk_full"
    CLOCK_SKEW = "clock_skew"
    NODE_DOWN = "node_down"
    CONDITION = "condition"
    PREFLIGHT = "preflight"


class Verdict(StrEnum):
    """What a node is held for; nothing new is placed on a quarantined one."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReading:
    """One accelerator as its driver tells, at `index` of its node; -1 and None where it cannot.

    `ecc_uncorrected` and `xids` (times each XID was told, by its number) only count up, and start
    again with the driver or whoever counts: XIDs are counted from `xids_since_ns` on. `is_lost` says
    that it was there and does not answer. `steps` are the tasks that told of it, where only they know that
    they have it: on a node that Moulin does not place on.
    """

    index: int
    uuid: str
    xids: Mapping[str, int] = field(default_factory=dict)
    ecc_uncorrected: int = -1
    is_remap_pending: bool | None = None
    is_remap_failed: bool | None = None
    is_hot: bool | None = None
    is_braked: bool | None = None
    links_down: int = -1
    is_lost: bool = False
    xids_since_ns: int = 0
    steps: tuple[StepId, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading:
    """One reading of a node; -1 for what could not be read.

    `devices` is None where accelerators could not be asked for at all, which says nothing about
    them; with `is_partial` it says nothing about those it does not name. `memory_errors` counts
    uncorrected errors of the machine's own memory, `memory_bytes` is how much of it there is.
    `down_because` and `complaints` are its engine's words: that it is down for certain, and what may
    pass.
    """

    node: NodeId
    at_ns: int
    devices: tuple[DeviceReading, ...] | None = None
    memory_errors: int = -1
    disk_free_bytes: int = -1
    clock_skew_ns: int = 0
    is_partial: bool = False
    memory_bytes: int = -1
    down_because: str = ""
    complaints: tuple[str, ...] = ()


def tellers(one: tuple[StepId, ...], other: tuple[StepId, ...]) -> tuple[StepId, ...]:
    """Return the `steps` of a device that two told of; one that names none speaks of this very node's.

    >>> tellers((StepId("a"),), (StepId("a"), StepId("b"))), tellers((StepId("a"),), ())
    (('a', 'b'), ())
    """
    return tuple(dict.fromkeys((*one, *other))) if one and other else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Since when a node is in quarantine, and why, in a sentence."""

    since_ns: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """One thing that is wrong; `device` is -1 for the node as a whole.

    With `is_evidence` the device (or all of the node) is known to be broken, so that what runs there
    is not worth waiting for. `value` is the XID, the number of errors, bytes or ns; `words` say more
    where a number does not. `uuid` and `steps` are the device's, as in its reading.
    """

    signal: Signal
    device: int = -1
    value: int = 0
    is_evidence: bool = False
    words: str = ""
    uuid: str = ""
    steps: tuple[StepId, ...] = ()
