"""What machines could ever do: which nodes of which zones suit a shape, whatever they hold now."""

import numpy as np
import numpy.typing as npt

from moulin.scheduler.demand import Shape
from moulin.scheduler.nodes import Column, Columns
from moulin.scheduler.state import State

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Fleet:
    """The nodes of a state as columns, with what was asked of them remembered while it lives."""

    def __init__(self, state: State, columns: Columns | None = None) -> None:
        self.state = state
        self.columns: Columns = state.nodes.columns if columns is None else columns
        self._zone_sets: dict[tuple[str, ...], Flags] = {}

    def able(self, shape: Shape, zones: tuple[str, ...]) -> Indices:
        """Return the present nodes of the zones that could hold one task when empty, by index."""
        able = self.suited(shape, zones, self.columns[Column.CPU_TOTAL : Column.TASKS])
        return np.flatnonzero(able & (self.columns[Column.IS_PRESENT] > 0))

    def suited(self, shape: Shape, zones: tuple[str, ...], amounts: Columns) -> Flags:
        """Return which nodes of the zones meet the shape with such CPU, memory and devices."""
        suited: Flags = (amounts[0] >= shape.cpu_milli) & self._in_zones(zones)
        suited &= amounts[1] >= shape.memory_bytes
        if shape.accelerators:
            suited &= amounts[2] >= shape.accelerators
        if shape.accelerator_class:
            wanted = self.state.nodes.classes.get(shape.accelerator_class, -1)
            suited &= self.columns[Column.ACCELERATOR_CLASS] == wanted
        if shape.needs:
            suited &= self.columns[Column.LACKS] & shape.needs == 0
        if shape.time_limit_min:
            suited &= self.columns[Column.TIME_LIMIT_MIN] >= shape.time_limit_min
        return suited

    def most_in_a_domain(self, nodes: Indices) -> int:
        """Return how many of the nodes are in the domain that has most of them."""
        if not nodes.size:
            return 0
        return int(np.bincount(self.columns[Column.DOMAIN][nodes]).max())

    def _in_zones(self, zones: tuple[str, ...]) -> Flags:
        found = self._zone_sets.get(zones)
        if found is None:
            names, zone = self.state.declared.zone_names, self.columns[Column.ZONE]
            if zones == names:
                found = zone >= 0
            else:
                wanted = [index for index, name in enumerate(names) if name in zones]
                found = np.isin(zone, wanted)
            self._zone_sets[zones] = found
        return found
