"""Nodes as columns: what each has, holds and draws, in name order, kept exact after every event.

Columns are int64 rows of one array, so that a decision copies them in one go and tests thousands of
nodes at once. Device sets are Python integers used as bit masks, because a node may have any number.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from moulin.domain.factory import ZoneState
from moulin.domain.health import Verdict
from moulin.domain.ids import NodeId, StepId
from moulin.domain.needs import NOWHERE, Need
from moulin.domain.observation import NodeCapacity
from moulin.scheduler.declared import Declared
from moulin.scheduler.demand import Shape
from moulin.scheduler.health import HealthRow
from moulin.scheduler.needs import need_mask
from moulin.scheduler.rows import TaskRow

Columns = npt.NDArray[np.int64]


class Column(IntEnum):
    """Rows of the array. CPU in milli-CPUs, memory in bytes, power in milliwatts.

    ZONE, SITE and DOMAIN are indices into the names of `Declared`, -1 while undeclared;
    ACCELERATOR_CLASS is an index into `NodeTable.classes`, 0 for none. What work that is not
    Moulin's takes is not free and counts as one of TASKS. LACKS is a mask of needs, TIME_LIMIT_MIN
    the most minutes that may be asked for. The LASTING columns are what it and tasks without a time
    limit hold: nobody knows their end, so no node is kept free until then.
    """

    CPU_FREE = 0
    MEMORY_FREE = 1
    DEVICES_FREE = 2
    CPU_TOTAL = 3
    MEMORY_TOTAL = 4
    DEVICES_TOTAL = 5
    TASKS = 6
    IDLE_MW = 7
    PEAK_MW = 8
    ZONE = 9
    SITE = 10
    DOMAIN = 11
    ACCELERATOR_CLASS = 12
    IS_PRESENT = 13
    IS_PLACEABLE = 14
    CPU_LASTING = 15
    MEMORY_LASTING = 16
    DEVICES_LASTING = 17
    TASKS_LASTING = 18
    LACKS = 19
    TIME_LIMIT_MIN = 20
    IS_EXCLUSIVE = 21


_FIRST_ROOM: Final = 16
NO_LIMIT_MIN: Final = 1 << 40


@dataclass(slots=True, kw_only=True)
class NodeRow:
    """One node. `devices_free` is a bit mask; `tasks` are those not proved ended, by step.

    `guests` are those that run there while other nodes hold what they need.
    """

    capacity: NodeCapacity
    pool: str
    is_present: bool = True
    is_reachable: bool = True
    devices_free: int = 0
    health: HealthRow = field(default_factory=HealthRow)
    tasks: dict[StepId, TaskRow] = field(default_factory=dict)
    guests: dict[StepId, TaskRow] = field(default_factory=dict)


class NodeTable:
    """Every node that was ever reported and is still served or still holds something."""

    __slots__ = ("_expected", "_room", "absent", "classes", "index", "names", "rows")

    def __init__(self) -> None:
        self.names: list[NodeId] = []
        self.rows: list[NodeRow] = []
        self.index: dict[NodeId, int] = {}
        self.classes: dict[str, int] = {"": 0}
        # What is known of nodes that left: one that comes back is not well for having been away, and
        # what its counters grew by meanwhile counts.
        self.absent: dict[NodeId, HealthRow] = {}
        # Guests of machines that were not reported yet.
        self._expected: dict[NodeId, dict[StepId, TaskRow]] = {}
        self._room: Columns = np.zeros((len(Column), _FIRST_ROOM), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def columns(self) -> Columns:
        """The live array, [Column, nodes]; a reader copies before it writes."""
        return self._room[:, : len(self.names)]

    def row(self, node: NodeId) -> NodeRow | None:
        """Return a node by its name."""
        position = self.index.get(node)
        return None if position is None else self.rows[position]

    def join(self, pool: str, capacity: NodeCapacity, declared: Declared) -> None:
        """Add a node, or take over changed facts about one; what it holds stays held."""
        row = self.row(capacity.node)
        if row is None:
            health = self.absent.pop(capacity.node, None) or HealthRow()
            guests = self._expected.pop(capacity.node, {})
            row = NodeRow(capacity=capacity, pool=pool, health=health, guests=guests)
            self._insert(capacity.node, row)
        row.capacity, row.pool, row.is_present = capacity, pool, True
        row.is_reachable = capacity.is_reachable
        self.classes.setdefault(capacity.accelerator_class, len(self.classes))
        self._recount(row)
        self.label(row, declared)

    def set_reachable(self, node: NodeId, declared: Declared, *, is_reachable: bool) -> None:
        """Record whether a node can be asked."""
        row = self.row(node)
        if row is not None:
            row.is_reachable = is_reachable
            self.label(row, declared)

    def leave(self, node: NodeId, declared: Declared) -> None:
        """Place nothing there any more; the row goes when nothing is held on it."""
        row = self.row(node)
        if row is not None:
            row.is_present = False
            self.label(row, declared)
            self._drop_if_empty(row)

    def label(self, row: NodeRow, declared: Declared) -> None:
        """Set the columns that follow from declared objects and reachability."""
        pool = declared.pools.get(row.pool)
        zone = declared.zones.get(pool.zone) if pool else None
        position = self.index[row.capacity.node]
        column = self._room[:, position]
        column[Column.ZONE] = column[Column.SITE] = column[Column.DOMAIN] = -1
        if pool is not None and zone is not None:
            column[Column.ZONE] = declared.zone_names.index(zone.name)
            column[Column.DOMAIN] = declared.domain_names.index((pool.zone, pool.engine))
            if zone.site in declared.sites:
                column[Column.SITE] = declared.site_names.index(zone.site)
        is_open = zone is not None and zone.state is ZoneState.OPEN
        has_room = row.is_present and not row.capacity.is_watched_only
        column[Column.IS_PRESENT] = has_room
        is_offered = has_room and row.is_reachable and not row.capacity.closed_because
        is_offered = is_offered and row.health.verdict is not Verdict.QUARANTINED
        column[Column.IS_PLACEABLE] = is_offered and is_open

    def relabel(self, declared: Declared) -> None:
        """Label every node again after declared objects changed. Cost: O(nodes)."""
        for row in self.rows:
            self.label(row, declared)

    def hold(self, task: TaskRow) -> bool:
        """Hold what a task needs; return whether the node had all of it."""
        position = self.index.get(task.node)
        if position is None:
            return False
        row, column = self.rows[position], self._room[:, position]
        mask = _mask(task.devices)
        row.tasks[task.step] = task
        has_room = row.devices_free & mask == mask
        row.devices_free &= ~mask
        self._move(column, task, -1)
        has_room = has_room and int(column[: Column.CPU_TOTAL].min()) >= 0
        if row.capacity.is_exclusive:
            self._recount(row)
        return has_room

    def meet(self, task: TaskRow, host: NodeId) -> None:
        """Note which machine a task runs on."""
        if host == task.host:
            return
        self.part(task)
        task.host = host
        row = self.row(host)
        guests = row.guests if row is not None else self._expected.setdefault(host, {})
        guests[task.step] = task

    def part(self, task: TaskRow) -> None:
        """Note that a task does not run any more on the machine it ran on."""
        if task.host is None:
            return
        row = self.row(task.host)
        if row is not None:
            row.guests.pop(task.step, None)
            self._drop_if_empty(row)
        elif task.host in self._expected:
            self._expected[task.host].pop(task.step, None)
            if not self._expected[task.host]:
                del self._expected[task.host]

    def release(self, task: TaskRow) -> None:
        """Give back what a task held."""
        self.part(task)
        position = self.index[task.node]
        row = self.rows[position]
        del row.tasks[task.step]
        is_gone = len(task.devices) and max(task.devices) >= row.capacity.accelerators
        if is_gone or row.capacity.taken_accelerators or row.capacity.is_exclusive:
            self._recount(row)
        else:
            row.devices_free |= _mask(task.devices)
            self._move(self._room[:, position], task, 1)
        self._drop_if_empty(row)

    def _move(self, column: Columns, task: TaskRow, sign: int) -> None:
        column[Column.CPU_FREE] += sign * task.cpu_milli
        column[Column.MEMORY_FREE] += sign * task.memory_bytes
        column[Column.DEVICES_FREE] += sign * len(task.devices)
        column[Column.TASKS] -= sign
        if task.is_lasting:
            column[Column.CPU_LASTING] -= sign * task.cpu_milli
            column[Column.MEMORY_LASTING] -= sign * task.memory_bytes
            column[Column.DEVICES_LASTING] -= sign * len(task.devices)
            column[Column.TASKS_LASTING] -= sign

    def _recount(self, row: NodeRow) -> None:
        """Set totals from the capacity and free amounts from the tasks and from what others took.

        Free amounts go below zero when a node came back smaller than what is held on it. Which
        devices others took is their engine's knowledge; here they are the last ones that are free.
        """
        capacity, tasks = row.capacity, row.tasks.values()
        held = _mask(tuple(device for task in tasks for device in task.devices))
        free = ((1 << capacity.accelerators) - 1) & ~held
        for _ in range(min(capacity.taken_accelerators, free.bit_count())):
            free ^= 1 << free.bit_length() - 1
        row.devices_free = free
        column = self._room[:, self.index[capacity.node]]
        column[Column.CPU_TOTAL] = capacity.cpu_milli
        column[Column.MEMORY_TOTAL] = capacity.memory_bytes
        column[Column.DEVICES_TOTAL] = capacity.accelerators
        cpu_held = sum(task.cpu_milli for task in tasks) + capacity.taken_cpu_milli
        memory_held = sum(task.memory_bytes for task in tasks) + capacity.taken_memory_bytes
        column[Column.CPU_FREE] = capacity.cpu_milli - cpu_held
        column[Column.MEMORY_FREE] = capacity.memory_bytes - memory_held
        column[Column.DEVICES_FREE] = row.devices_free.bit_count()
        column[Column.TASKS] = len(row.tasks) + bool(capacity.taken_cpu_milli)
        lasting = [task for task in tasks if task.is_lasting]
        cpu_lasting = sum(task.cpu_milli for task in lasting) + capacity.taken_cpu_milli
        memory_lasting = sum(task.memory_bytes for task in lasting) + capacity.taken_memory_bytes
        devices_lasting = sum(len(task.devices) for task in lasting) + capacity.taken_accelerators
        column[Column.CPU_LASTING] = cpu_lasting
        column[Column.MEMORY_LASTING] = memory_lasting
        column[Column.DEVICES_LASTING] = devices_lasting
        column[Column.TASKS_LASTING] = len(lasting) + bool(capacity.taken_cpu_milli)
        column[Column.IDLE_MW] = capacity.idle_mw
        column[Column.PEAK_MW] = max(capacity.peak_mw, capacity.idle_mw)
        column[Column.ACCELERATOR_CLASS] = self.classes[capacity.accelerator_class]
        column[Column.LACKS] = _lacks(capacity)
        column[Column.TIME_LIMIT_MIN] = capacity.asked_time_limit_s // 60 or NO_LIMIT_MIN
        column[Column.IS_EXCLUSIVE] = capacity.is_exclusive
        if capacity.is_watched_only:
            column[: Column.IDLE_MW] = 0
            column[Column.CPU_LASTING : Column.LACKS] = 0
        if capacity.is_exclusive:
            _fill(column)

    def _insert(self, node: NodeId, row: NodeRow) -> None:
        count = len(self.names)
        if count == self._room.shape[1]:
            self._room = np.concatenate([self._room, np.zeros_like(self._room)], axis=1)
        position = count
        while position > 0 and self.names[position - 1] > node:
            position -= 1
        self._room[:, position + 1 : count + 1] = self._room[:, position:count]
        self._room[:, position] = 0
        self.names.insert(position, node)
        self.rows.insert(position, row)
        self._number_from(position)

    def _drop_if_empty(self, row: NodeRow) -> None:
        if row.is_present or row.tasks or row.guests:
            return
        position = self.index.pop(row.capacity.node)
        if row.health.is_ailing or row.health.quarantines or row.health.reading is not None:
            self.absent[row.capacity.node] = row.health
        self._room[:, position:-1] = self._room[:, position + 1 :]
        del self.names[position], self.rows[position]
        self._number_from(position)

    def _number_from(self, position: int) -> None:
        for later in range(position, len(self.names)):
            self.index[self.names[later]] = later


def _fill(column: Columns) -> None:
    """Leave nothing free of a node that is given as a whole, as soon as anything is on it."""
    if column[Column.TASKS]:
        free = column[: Column.CPU_TOTAL]
        np.minimum(free, 0, out=free)
    if column[Column.TASKS_LASTING]:
        column[Column.CPU_LASTING : Column.TASKS_LASTING] = column[Column.CPU_TOTAL : Column.TASKS]


def held_on(row: NodeRow, column: Columns) -> tuple[int, int, int]:
    """Return the CPU, memory and devices of a node that are held; on a watched one, by its guests."""
    capacity = row.capacity
    if not capacity.is_watched_only:
        cpu_milli = capacity.cpu_milli - int(column[Column.CPU_FREE])
        memory_bytes = capacity.memory_bytes - int(column[Column.MEMORY_FREE])
        return cpu_milli, memory_bytes, capacity.accelerators - int(column[Column.DEVICES_FREE])
    guests = row.guests.values()
    return (
        sum(task.cpu_milli for task in guests),
        sum(task.memory_bytes for task in guests),
        sum(len(task.devices) for task in guests),
    )


def node_draw_mw(columns: Columns) -> Columns:
    """Return what each node is committed to draw, in milliwatts: [nodes].

    Idle plus the larger of the CPU and accelerator shares held, rounded up, of the span from idle
    to peak.
    """
    span = columns[Column.PEAK_MW] - columns[Column.IDLE_MW]
    cpu = _share(span, columns[Column.CPU_FREE], columns[Column.CPU_TOTAL])
    devices = _share(span, columns[Column.DEVICES_FREE], columns[Column.DEVICES_TOTAL])
    draw: Columns = columns[Column.IDLE_MW] + np.maximum(cpu, devices)
    return draw


def when_limits_end(columns: Columns) -> Columns:
    """Return the columns as they will be when every time limit has ended what it limits."""
    later = columns.copy()
    later[Column.CPU_FREE] = columns[Column.CPU_TOTAL] - columns[Column.CPU_LASTING]
    later[Column.MEMORY_FREE] = columns[Column.MEMORY_TOTAL] - columns[Column.MEMORY_LASTING]
    later[Column.DEVICES_FREE] = columns[Column.DEVICES_TOTAL] - columns[Column.DEVICES_LASTING]
    later[Column.TASKS] = columns[Column.TASKS_LASTING]
    return later


def when_empty(columns: Columns) -> Columns:
    """Return the columns as if nothing ran."""
    later = columns.copy()
    later[: Column.CPU_TOTAL] = columns[Column.CPU_TOTAL : Column.TASKS]
    later[Column.TASKS] = 0
    return later


def added_draw_mw(columns: Columns, shape: Shape) -> Columns:
    """Return what one more task of a shape would add to each node's draw: [nodes]."""
    after = columns.copy()
    if shape.is_whole_node:
        after[[Column.CPU_FREE, Column.DEVICES_FREE]] = 0
    else:
        after[Column.CPU_FREE] -= shape.cpu_milli
        after[Column.DEVICES_FREE] -= shape.accelerators
        is_exclusive = columns[Column.IS_EXCLUSIVE] > 0
        after[Column.CPU_FREE, is_exclusive] = after[Column.DEVICES_FREE, is_exclusive] = 0
    added: Columns = node_draw_mw(after) - node_draw_mw(columns)
    return added


def draw_mw(span_mw: int, cpu: tuple[int, int], devices: tuple[int, int]) -> int:
    """Return one node's committed draw above idle; the pairs are (held, total)."""
    cpu_mw = -(-span_mw * cpu[0] // cpu[1]) if cpu[1] else 0
    devices_mw = -(-span_mw * devices[0] // devices[1]) if devices[1] else 0
    return max(cpu_mw, devices_mw)


def _share(span_mw: Columns, free: Columns, total: Columns) -> Columns:
    held = np.where(total > 0, total - free, 0)
    share: Columns = -(-span_mw * held // np.maximum(total, 1))
    return share


def lacking(capacity: NodeCapacity) -> tuple[Need, ...]:
    """Return what a node's engine cannot carry there: what it says, and a login where there is none."""
    login = () if capacity.has_login or Need.LOGIN in capacity.lacks else (Need.LOGIN,)
    return (*login, *capacity.lacks)


def _lacks(capacity: NodeCapacity) -> int:
    return need_mask((*lacking(capacity), *NOWHERE))


def _mask(devices: tuple[int, ...]) -> int:
    mask = 0
    for device in devices:
        mask |= 1 << device
    return mask
