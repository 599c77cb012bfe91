"""Node meters: this machine's own CPU counters, and nothing for machines that are elsewhere."""

from moulin.app.clock import SystemClock
from moulin.domain.observation import NodeCapacity
from moulin.ports.meter import NodeCounter
from moulin.sources.node_cpu import read_cpu_busy

SIMULATED_CLASS = "simulated"


class MachineMeter:
    """Reads /proc/stat for nodes of this machine; a simulated node uses no CPU, and says so.

    Of a machine that an engine of others reaches (Slurm, Ray) nothing but its tasks' own readings is
    known here.
    """

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock

    def read(self, node: NodeCapacity) -> NodeCounter | None:
        """Return the node's busy CPU time now; raises `SourceUnavailable` as the source does."""
        if not node.cpu_ids and node.machine_class != SIMULATED_CLASS:
            return None
        if not node.cpu_ids:
            return NodeCounter(at_ns=self._clock.now_ns(), cpu_ns=0, method=SIMULATED_CLASS)
        reading = read_cpu_busy(node.cpu_ids)
        return NodeCounter(
            at_ns=self._clock.at_monotonic(reading.at_monotonic_ns),
            cpu_ns=reading.busy_ns,
            method="busy time of /proc/stat",
        )
