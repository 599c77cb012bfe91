"""This machine as a machine class: memory as found, power as stated for its CPU, pace as measured.

Its pace is measured once, when somebody first asks where a model fits.
"""

import threading
from dataclasses import replace
from datetime import UTC, datetime

from moulin.catalog.fit import Machine
from moulin.catalog.machines import MACHINE_CLASSES, THIS_MACHINE
from moulin.catalog.speed import Pace
from moulin.energy.power import cpu_power
from moulin.sources.machine import MachineFacts, read_machine
from moulin.sources.pace import read_pace


class OwnMachine:
    """Reads this machine when asked; the pace is kept from the first time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pace: Pace | None = None

    def __call__(self) -> Machine:
        """Return this machine; the first call takes about half a second.

        Raises `SourceUnavailable` where there is no Linux /proc.
        """
        facts = read_machine()
        power = cpu_power(facts.cpu_model, len(facts.cpu_ids) * 1000)
        shipped = MACHINE_CLASSES[THIS_MACHINE]
        return Machine(
            machine_class=replace(
                shipped,
                title=f"{facts.cpu_model}, {len(facts.cpu_ids)} CPUs",
                memory_bytes=facts.memory_bytes,
                idle_mw=power.idle_mw,
                peak_mw=power.peak_mw,
                sources={**shipped.sources, "idle_mw": power.source, "peak_mw": power.source},
            ),
            pace=self._measured(facts),
            quality=power.quality,
            uncertainty_ppm=power.uncertainty_ppm,
        )

    def _measured(self, facts: MachineFacts) -> Pace:
        with self._lock:
            if self._pace is None:
                threads = len(facts.cpu_ids)
                found = read_pace(threads)
                when = datetime.now(UTC).isoformat(timespec="seconds")
                how = f"measured on {facts.hostname} with {threads} threads at {when}"
                self._pace = (
                    Pace()
                    if found is None
                    else Pace(
                        read_bytes_per_s=found.read_bytes_per_s,
                        read_origin=how,
                        flops_per_s=found.flops_per_s,
                        flops_origin=f"single precision, {how}",
                    )
                )
            return self._pace
