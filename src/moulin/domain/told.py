"""Turns what the reader on a node says of it into readings; decides nothing about what they mean."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from moulin.domain.health import DeviceReading, NodeReading, tellers
from moulin.domain.ids import NodeId

_MACHINE: Final = ("memory_bytes", "memory_errors", "disk_free_bytes")
# A clock is said to be wrong only by more than what a slow way here may take.
DEVICES_MAX: Final = 64
NAME_MAX: Final = 128
XIDS_MAX: Final = 256
SLACK_NS: Final = 3_000_000_000


def read_told(data: bytes) -> Mapping[str, Any] | None:
    """Return what was written of a machine; None for a torn or foreign file.

    Work of tenants can write where it is read: nothing is believed that a reader would not write.
    """
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or not _is_number(told.get("at_ns")):
        return None
    if not all(_is_number(told.get(name, -1)) for name in _MACHINE):
        return None
    devices = told.get("devices")
    is_list = isinstance(devices, list) and len(devices) <= DEVICES_MAX
    return told if devices is None or (is_list and all(map(_is_device, devices))) else None


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
    """Return what several readers on one machine say, each of the devices it sees; the last is newest.

    What one tells of XIDs stands beside what another says that began only after them.
    """
    newest = readings[-1]
    devices: dict[str, DeviceReading] = {}
    for each in (device for reading in readings for device in reading.devices or ()):
        devices[each.uuid] = _together(devices.get(each.uuid, each), each)
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


def _together(former: DeviceReading, now: DeviceReading) -> DeviceReading:
    # Of those that heard any, who began first heard most; who speaks last says nothing about that.
    heard = [each for each in (former, now) if each.xids] or [now]
    told = min(heard, key=lambda each: each.xids_since_ns)
    return replace(
        now,
        index=min(former.index, now.index),
        steps=tellers(former.steps, now.steps),
        xids=told.xids,
        xids_since_ns=told.xids_since_ns,
        links_down=max(former.links_down, now.links_down),
    )


def skew_ns(at_ns: int, after_ns: int, before_ns: int) -> int:
    """Return by how much a clock is wrong at least that said `at_ns` between two instants of ours.

    >>> skew_ns(100, 90, 110), skew_ns(9 * 10**9, 10**9, 2 * 10**9)
    (0, 7000000000)
    """
    if at_ns > before_ns + SLACK_NS:
        return at_ns - before_ns
    return at_ns - after_ns if at_ns < after_ns - SLACK_NS else 0


def _is_device(told: object) -> bool:
    return (
        isinstance(told, dict)
        and {"index", "uuid"} <= told.keys()
        and all(_KINDS[name](value) for name, value in told.items() if name in _KINDS)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 1 << 64


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= NAME_MAX and value.isprintable()


def _is_counts(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= XIDS_MAX
        and all(_is_name(each) and each.isdigit() for each in value)
        and all(map(_is_number, value.values()))
    )


_KINDS: Final[Mapping[str, Callable[[object], bool]]] = {
    "index": _is_number,
    "uuid": _is_name,
    "xids": _is_counts,
    "ecc_uncorrected": _is_number,
    "is_remap_pending": _is_flag,
    "is_remap_failed": _is_flag,
    "is_hot": _is_flag,
    "is_braked": _is_flag,
    "links_down": _is_number,
    "is_lost": lambda value: isinstance(value, bool),
    "xids_since_ns": _is_number,
}


def _device(told: Mapping[str, Any]) -> DeviceReading:
    return DeviceReading(**{name: value for name, value in told.items() if name in _KINDS})
