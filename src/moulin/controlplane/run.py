"""Runs cycles until told to stop, and survives a store that fails for a while."""

import logging
from collections.abc import Callable
from typing import Final

from moulin.controlplane.cycle import cycle
from moulin.controlplane.plane import Plane
from moulin.controlplane.recover import read_again
from moulin.domain.errors import DiskFull, StaleGeneration, StoreCorrupt, StoreError

log = logging.getLogger(__name__)
BACKOFF_S_FIRST: Final = 0.1
BACKOFF_S_MAX: Final = 5.0
SETTLE_CYCLES_MAX: Final = 1000


def run(plane: Plane, is_stopping: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    """Cycle until `is_stopping`; workloads go on when it returns.

    After a failed commit the books are folded again from the log, because they hold events that
    never became durable. Raises `StoreCorrupt` and `StaleGeneration`: guessing or going on
    without the lead would be worse than stopping.
    """
    backoff_s = BACKOFF_S_FIRST
    while not is_stopping():
        try:
            turn(plane, 0.0 if plane.books.cursors.owed else plane.settings.cycle_wait_s)
            backoff_s = BACKOFF_S_FIRST
        except (StoreCorrupt, StaleGeneration):
            raise
        except (StoreError, DiskFull) as error:
            log.warning("%s; trying again in %.1f s", error.message, backoff_s)
            sleep(backoff_s)
            backoff_s = min(BACKOFF_S_MAX, backoff_s * 2)
    settle(plane)


def turn(plane: Plane, wait_s: float) -> None:
    """Run one cycle, from books that hold nothing but the log.

    Raises what `cycle` and `read_again` do; until the log can be read, no cycle runs.
    """
    if plane.is_ahead:
        read_again(plane)
    cycle(plane, wait_s)


def settle(plane: Plane) -> None:
    """Meter what ended since the last interval, so that a stopped factory owes no receipt.

    A store that fails now loses nothing: the next control plane meters the same from the log.
    """
    try:
        for _ in range(SETTLE_CYCLES_MAX):
            cursors = plane.books.cursors
            plane.unmetered.update(
                dict.fromkeys(node for node, cursor in cursors.nodes.items() if cursor.ended)
            )
            if not (plane.unmetered or cursors.owed):
                return
            plane.due_ns.pop("meter", None)
            turn(plane, 0.0)
    except (StoreError, DiskFull) as error:
        log.warning("%s; the last interval is metered at the next start", error.message)
