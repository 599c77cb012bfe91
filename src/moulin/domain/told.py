"""Turns what the reader on a node says of it into readings; decides nothing about what they mean."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from moulin.domain.health import DeviceReading, NodeReading
from moulin.domain.ids import NodeId

_DEVICE: Final = frozenset(DeviceReading.__dataclass_fields__)
_MACHINE: Final = ("memory_bytes", "memory_errors", "disk_free_bytes")
# A clock is said to be wrong only by more than what a slow way here may take.
SLACK_NS: Final = 3_000_000_000


def read_told(data: bytes) -> Mapping[str, Any] | None:
    """Return what was written of a machine; None for a torn or foreign file."""
    try:
        told = json.loads(data)
    except ValueError:
        return None
    return told if isinstance(told, dict) and isinstance(told.get("at_ns"), int) else None


def reading_of(
    node: NodeId, told: Mapping[str, Any], *, skew_ns: int = 0, is_partial: bool = False
) -> NodeReading:
    """Return what was told of a node; `skew_ns` is how wrong its clock is for certain."""
    devices = told.get("devices")
    return NodeReading(
        node=node,
        at_ns=told["at_ns"],
        devices=None if devices is None else tuple(_device(each) for each in devices),
        is_partial=is_partial,
        clock_skew_ns=skew_ns,
        **{name: told.get(name, -1) for name in _MACHINE},
    )


def joined(node: NodeId, readings: Sequence[NodeReading]) -> NodeReading:
    """Return what several readers on one machine say, each of the devices it sees; the last is newest."""
    newest = readings[-1]
    devices: dict[str, DeviceReading] = {}
    for each in (each for reading in readings for each in reading.devices or ()):
        known = devices.get(each.uuid, each)
        steps = tuple(dict.fromkeys((*known.steps, *each.steps)))
        devices[each.uuid] = replace(each, steps=steps)
    skew_ns = max((each.clock_skew_ns for each in readings), key=abs)
    return NodeReading(
        node=node,
        at_ns=newest.at_ns,
        devices=tuple(devices[uuid] for uuid in sorted(devices)) if devices else None,
        memory_errors=newest.memory_errors,
        memory_bytes=newest.memory_bytes,
        disk_free_bytes=newest.disk_free_bytes,
        clock_skew_ns=skew_ns,
        is_partial=True,
    )


def skew_ns(at_ns: int, after_ns: int, before_ns: int) -> int:
    """Return by how much a clock is wrong at least that said `at_ns` between two instants of ours.

    >>> skew_ns(100, 90, 110), skew_ns(9 * 10**9, 10**9, 2 * 10**9)
    (0, 7000000000)
    """
    if at_ns > before_ns + SLACK_NS:
        return at_ns - before_ns
    return at_ns - after_ns if at_ns < after_ns - SLACK_NS else 0


def _device(told: Mapping[str, Any]) -> DeviceReading:
    return DeviceReading(**{name: value for name, value in told.items() if name in _DEVICE})
