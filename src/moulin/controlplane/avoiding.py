"""Tells engines which of their nodes are in quarantine, where somebody else chooses machines.

The decider keeps off such nodes by itself; this is for what is placed on no machine by name.
"""

import contextlib
from typing import Final

from moulin.controlplane.plane import Plane
from moulin.domain.errors import EngineError
from moulin.domain.health import Quarantine
from moulin.domain.ids import NodeId
from moulin.ports.engine import Avoids
from moulin.scheduler import quarantined

_NOTHING: Final[dict[NodeId, Quarantine]] = {}


def tell_quarantines(plane: Plane) -> None:
    """Tell every engine that was told something else, or that is new; what it does not hear is told again."""
    wanted: dict[str, dict[NodeId, Quarantine]] = {}
    for node, pool, why in quarantined(plane.books.schedule):
        wanted.setdefault(pool, {})[node] = why
    for pool in sorted(plane.engines):
        engine, nodes = plane.engines[pool], wanted.get(pool, _NOTHING)
        told_to, told = plane.avoided.get(pool, (None, _NOTHING))
        if (told_to is engine and told == nodes) or not isinstance(engine, Avoids):
            continue
        with contextlib.suppress(EngineError):
            engine.avoid(nodes)
            plane.avoided[pool] = (engine, nodes)
