"""Free capacity as one decision sees it: where a gang fits, and what is left after it took its place.

A `Room` is a private copy that only shrinks, so a node that did not fit a shape never fits it again
in the same decision; that is what lets candidate lists be made once and only shortened.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from moulin.scheduler.demand import Demand, Shape
from moulin.scheduler.fleet import Flags, Fleet, Indices
from moulin.scheduler.nodes import Column, Columns, added_draw_mw, draw_mw, when_limits_end
from moulin.scheduler.power import SitePower, power_by_site
from moulin.scheduler.state import State

# Best fit compares devices, then CPU in tenths, then memory in GiB, packed into one integer; the
# node's index in the low bits makes every key unique, so that sorting is deterministic.
_INDEX_BITS: Final = 20
_MEMORY_BITS: Final = 16
_CPU_BITS: Final = 18
_DEVICE_BITS: Final = 8
_FITS_SHIFT: Final = _INDEX_BITS + _MEMORY_BITS + _CPU_BITS + _DEVICE_BITS
_FAILED_MAX: Final = 64
_SORTED_FIRST: Final = 64

# Rows of a room's own amounts, and the columns of the state they start from.
_CPU, _MEMORY, _DEVICES, _TASKS = range(4)
_FREE: Final = [Column.CPU_FREE, Column.MEMORY_FREE, Column.DEVICES_FREE, Column.TASKS]


@dataclass(slots=True)
class Domain:
    """Candidates of one shape in one domain, the best fit first, sorted only as far as needed.

    `nodes` are indices of the next best, the best at the end; `keys` are those of all others, by
    which they follow: a key's low bits are its node.
    """

    site: int
    keys: Indices
    nodes: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether a candidate is left."""
        return bool(self.nodes) or bool(self.keys.size)

    def pop(self) -> int:
        """Take the best candidate that is left."""
        if not self.nodes:
            self._sort(max(_SORTED_FIRST, self.keys.size // 8))
        return self.nodes.pop()

    def all(self) -> list[int]:
        """Return every candidate, the best at the end."""
        self._sort(self.keys.size)
        return self.nodes

    def _sort(self, count: int) -> None:
        """Put the `count` best of the others before those in `nodes`."""
        best, self.keys = self.keys, self.keys[:0]
        if count < best.size:
            best = np.partition(best, count)
            best, self.keys = best[:count], best[count:]
        best = np.sort(best)[::-1] & ((1 << _INDEX_BITS) - 1)
        self.nodes = best.tolist() + self.nodes


class Chosen(NamedTuple):
    """The nodes for a gang in rank order, or none with `is_power` when only power was short."""

    nodes: list[int]
    is_power: bool = False


class Room(Fleet):
    """What is free, reserved and drawn while one plan is being made."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.free: Columns = self.columns[_FREE]  # a copy, as indexing by a list makes one
        # The same amounts for one node at a time: a tenth of the cost of indexing an array.
        self.cpu, self.memory, self.devices, self.tasks = map(_by_node, self.free)
        self.masks: dict[int, int] = {}
        self.reserved: Flags = np.zeros(self.free.shape[1], dtype=np.bool_)
        self.is_reserved = _by_node(self.reserved)
        self.power: dict[int, SitePower] = power_by_site(state.declared, self.columns)
        self._candidates: dict[tuple[Shape, tuple[str, ...]], list[Domain]] = {}
        self._failed: dict[tuple[str, ...], list[tuple[Shape, int]]] = {}

    def choose(self, demand: Demand, zones: tuple[str, ...]) -> Chosen:
        """Return distinct nodes of one domain for every task of a gang, taking nothing yet.

        Order:  the domain with the fewest candidates first (one without accelerators before one
                with, for a shape that needs none), in it the best fit, ties by node name.
        """
        if self._is_hopeless(demand, zones):
            return Chosen([])
        is_power = False
        for domain in self._domains(demand.shape, zones):
            nodes = self._collect(domain, demand)
            if not nodes:
                continue
            nodes = self._within_power(domain, demand, nodes)
            if nodes:
                return Chosen(nodes)
            is_power = True
        if not is_power:
            self._remember_failure(demand, zones)
        return Chosen([], is_power=is_power)

    def take(self, shape: Shape, node: int) -> tuple[int, ...]:
        """Hold one task's share of a node and return its device indices, lowest first."""
        if self.power:
            power = self.power.get(int(self.columns[Column.SITE, node]))
            if power is not None:
                power.it_mw += self.added_mw(shape, node)
        cpu, memory, count = self.held_by(shape, node)
        self.cpu[node] -= cpu
        self.memory[node] -= memory
        self.devices[node] -= count
        self.tasks[node] += 1
        return self._take_devices(node, count) if count else ()

    def columns_left(self) -> Columns:
        """Return the state's columns with what is left in this room."""
        columns = self.columns.copy()
        columns[_FREE] = self.free
        return columns

    def held_by(self, shape: Shape, node: int) -> tuple[int, int, int]:
        """Return CPU, memory and device count that one task holds on a node."""
        if shape.is_whole_node:
            capacity = self.state.nodes.rows[node].capacity
            return capacity.cpu_milli, capacity.memory_bytes, capacity.accelerators
        return shape.cpu_milli, shape.memory_bytes, shape.accelerators

    def fitting(self, shape: Shape, zones: tuple[str, ...]) -> Indices:
        """Return the unreserved nodes of the zones that have room for one task, by index."""
        fits = self.suited(shape, zones, self.free) & ~self.reserved
        fits &= self.columns[Column.IS_PLACEABLE] > 0
        if shape.is_whole_node:
            fits &= self.free[_TASKS] == 0
        return np.flatnonzero(fits)

    def reserve(self, demand: Demand, zones: tuple[str, ...]) -> None:
        """Keep nodes free for a gang that waits for capacity.

        They are the nodes of one domain that fit a task now, then those with the most free, of all
        that will fit one when the time limits there have ended; nobody later in the order gets them
        in this decision. Free amounts there can only grow from cycle to cycle, so the gang's nodes
        drain and it starts. What no limit will ever free is not waited for: nothing is kept.
        """
        coming = self._coming(demand, zones)
        fits = np.isin(coming, self.fitting(demand.shape, zones), assume_unique=True)
        best = coming[:0]
        best_fits = np.zeros(0, dtype=np.bool_)
        for here in self._by_domain(coming):
            is_better = int(fits[here].sum()) > int(best_fits.sum()) or not best.size
            if int(here.sum()) >= demand.tasks and is_better:
                best, best_fits = coming[here], fits[here]
        keys = self._keys(best) + (best_fits.astype(np.int64) << np.int64(_FITS_SHIFT))
        kept = best[np.argsort(keys)[-demand.tasks :]]
        self.reserved[kept] = True

    def keep(self, nodes: Iterable[int]) -> None:
        """Keep nodes from whatever comes later in the order."""
        for node in nodes:
            self.reserved[node] = True

    def freeze_power(self, demand: Demand, zones: tuple[str, ...]) -> None:
        """Keep the power of the sites where a gang waits for it and time limits will free enough."""
        if all(power.is_frozen for power in self.power.values()):
            return
        later = when_limits_end(self.columns)
        power_later = power_by_site(self.state.declared, later)
        added_mw = added_draw_mw(later, demand.shape)
        coming = self._coming(demand, zones)
        for here in self._by_domain(coming):
            nodes = coming[here]
            site = int(self.columns[Column.SITE, nodes[0]])
            if nodes.size >= demand.tasks and site in self.power:
                least_mw = int(np.sort(added_mw[nodes])[: demand.tasks].sum())
                self.power[site].is_frozen |= power_later[site].carries(least_mw)

    def _coming(self, demand: Demand, zones: tuple[str, ...]) -> Indices:
        """Return the unreserved nodes that will fit a task when the time limits there have ended."""
        later = Fleet(self.state, when_limits_end(self.columns))
        fits = later.suited(demand.shape, zones, later.columns[: Column.CPU_TOTAL])
        fits &= ~self.reserved
        fits &= later.columns[Column.IS_PLACEABLE] > 0
        if demand.shape.is_whole_node:
            fits &= later.columns[Column.TASKS] == 0
        return np.flatnonzero(fits)

    def _by_domain(self, nodes: Indices) -> list[Flags]:
        domains = self.columns[Column.DOMAIN][nodes]
        return [domains == domain for domain in np.unique(domains).tolist()]

    def added_mw(self, shape: Shape, node: int) -> int:
        """Return what one more task would add to a node's committed draw."""
        capacity = self.state.nodes.rows[node].capacity
        span = max(capacity.peak_mw - capacity.idle_mw, 0)
        cpu, _, count = self.held_by(shape, node)
        cpu_total, devices_total = capacity.cpu_milli, capacity.accelerators
        cpu_held, devices_held = cpu_total - self.cpu[node], devices_total - self.devices[node]
        before = draw_mw(span, (cpu_held, cpu_total), (devices_held, devices_total))
        after = draw_mw(span, (cpu_held + cpu, cpu_total), (devices_held + count, devices_total))
        return after - before

    def _domains(self, shape: Shape, zones: tuple[str, ...]) -> list[Domain]:
        key = (shape, zones)
        found = self._candidates.get(key)
        if found is None:
            found = self._candidates[key] = self._candidate_domains(shape, zones)
        return found

    def _candidate_domains(self, shape: Shape, zones: tuple[str, ...]) -> list[Domain]:
        nodes = self.fitting(shape, zones)
        if not nodes.size:
            return []
        keys = self._keys(nodes)
        domains = self.columns[Column.DOMAIN][nodes]
        has_devices = self.columns[Column.DEVICES_TOTAL][nodes] > 0
        found = []
        for index in np.flatnonzero(np.bincount(domains)).tolist():
            here = domains == index
            wastes = not shape.accelerators and bool(has_devices[here].any())
            site = int(self.columns[Column.SITE, nodes[here.argmax()]])
            listed = keys[here]
            found.append((wastes, listed.size, Domain(site, listed)))
        return [domain for _, _, domain in sorted(found, key=lambda item: item[:2])]

    def _collect(self, domain: Domain, demand: Demand) -> list[int]:
        """Return the best-fitting nodes for a gang, dropping candidates that no longer fit."""
        picked: list[int] = []
        while domain and len(picked) < demand.tasks:
            node = domain.pop()
            if self.has_room(demand.shape, node):
                picked.append(node)
        domain.nodes.extend(reversed(picked))
        return picked if len(picked) == demand.tasks else []

    def _within_power(self, domain: Domain, demand: Demand, nodes: list[int]) -> list[int]:
        """Return `nodes` if their site carries them, else the least power that does, else none."""
        power = self.power.get(domain.site)
        if power is None:
            return nodes
        if power.carries(sum(self.added_mw(demand.shape, node) for node in nodes)):
            return nodes
        fitting = [node for node in reversed(domain.all()) if self.has_room(demand.shape, node)]
        added = {node: self.added_mw(demand.shape, node) for node in fitting}
        least = sorted(fitting, key=lambda node: added[node])[: demand.tasks]
        return least if power.carries(sum(added[node] for node in least)) else []

    def has_room(self, shape: Shape, node: int) -> bool:
        """Whether an unreserved node has room for one task, wherever it is and whatever its class."""
        return (
            self.cpu[node] >= shape.cpu_milli
            and self.memory[node] >= shape.memory_bytes
            and self.devices[node] >= shape.accelerators
            and not self.is_reserved[node]
            and not (shape.is_whole_node and self.tasks[node])
        )

    def _keys(self, nodes: Indices) -> Indices:
        free = self.free[:, nodes]
        devices = _clipped(free[_DEVICES], _DEVICE_BITS)
        cpu = _clipped(free[_CPU] // 100, _CPU_BITS)
        memory = _clipped(free[_MEMORY] >> 30, _MEMORY_BITS)
        packed = ((devices << _CPU_BITS | cpu) << _MEMORY_BITS) | memory
        keys: Indices = (packed << _INDEX_BITS) | nodes
        return keys

    def _take_devices(self, node: int, count: int) -> tuple[int, ...]:
        mask = self.masks.get(node)
        if mask is None:
            mask = self.state.nodes.rows[node].devices_free
        taken = []
        for _ in range(count):
            lowest = mask & -mask
            taken.append(lowest.bit_length() - 1)
            mask ^= lowest
        self.masks[node] = mask
        return tuple(taken)

    def _is_hopeless(self, demand: Demand, zones: tuple[str, ...]) -> bool:
        """Whether something no larger already failed in the same zones."""
        failed = self._failed.get(zones)
        return failed is not None and any(
            tasks <= demand.tasks and _is_within(shape, demand.shape) for shape, tasks in failed
        )

    def _remember_failure(self, demand: Demand, zones: tuple[str, ...]) -> None:
        failed = self._failed.setdefault(zones, [])
        if len(failed) < _FAILED_MAX:
            failed.append((demand.shape, demand.tasks))


def _by_node(row: npt.NDArray[Any]) -> Any:
    return memoryview(row)  # type: ignore[arg-type]  # typeshed does not know arrays as buffers


def _clipped(amounts: Indices, bits: int) -> Indices:
    return np.minimum(np.maximum(amounts, 0), (1 << bits) - 1)


def _is_within(small: Shape, large: Shape) -> bool:
    return (
        small.cpu_milli <= large.cpu_milli
        and small.memory_bytes <= large.memory_bytes
        and small.accelerators <= large.accelerators
        and small.accelerator_class in ("", large.accelerator_class)
        and small.is_whole_node <= large.is_whole_node
        and not small.needs & ~large.needs
        and small.time_limit_min <= large.time_limit_min
    )
