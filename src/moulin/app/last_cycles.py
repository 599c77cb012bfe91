"""Stops all work of a factory whose control plane does not run, by being that control plane meanwhile.

So every engine is asked, near or far, and every end is recorded and charged as any other.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from moulin.app.control import SETUP, factory_settings, read_settings
from moulin.app.down import LIVE_STATES
from moulin.app.wiring.factory import Factory, open_factory
from moulin.controlplane.commands import StopWorkload
from moulin.controlplane.run import run
from moulin.domain.errors import DeadlineExceeded
from moulin.domain.ids import WorkloadId
from moulin.domain.views import WorkloadView
from moulin.ports.store import WorkloadFilter

READ_AT_ONCE: Final = 1000


def stop_all_work(data: Path, *, wait_s: float) -> int:
    """Stop every workload and return how many there were, when the last has ended.

    The caller holds the directory's lock. Raises what `open_factory` does, `DeadlineExceeded` when
    one does not end in `wait_s`: what was asked stays asked.
    """
    factory = open_factory(factory_settings(data, read_settings(data)))
    deadline_s = time.monotonic() + wait_s
    asked: set[str] = set()

    def is_done() -> bool:
        live = _live(factory)
        for view in live:
            if view.id not in asked:
                asked.add(view.id)
                stop = StopWorkload(principal=SETUP, workload=WorkloadId(view.id))
                factory.plane.inbox.call(stop)
        return not live or time.monotonic() >= deadline_s

    try:
        run(factory.plane, is_done, time.sleep)
        if remaining := _live(factory):
            names = ", ".join(view.id for view in remaining[:5])
            raise DeadlineExceeded(
                f"stop {len(remaining)} workload(s) in {wait_s:g} s: {names}",
                hint="try again with a longer --wait, or start Moulin to see why",
            )
    finally:
        factory.store.close()
    return len(asked)


def _live(factory: Factory) -> Sequence[WorkloadView]:
    return factory.store.workloads(WorkloadFilter(states=LIVE_STATES, limit=READ_AT_ONCE))
