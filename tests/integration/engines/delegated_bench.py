"""What benches share that reach a delegated pool of a real Slurm over HTTP."""

from pathlib import Path

from moulin.domain.ids import NodeId
from moulin.engines.slurm.engine import SlurmEngine
from tests.conformance.engine_bench import EffectsInFiles, wait_until


def places_of(engine: SlurmEngine) -> tuple[NodeId, ...]:
    """Return what an engine offers; its machines are watched beside it."""
    return tuple(node.node for node in engine.capacity() if not node.is_watched_only)


def obedient(directory: Path) -> str:
    """Return a script that ends with status 9 when asked to, once `wait_until_obedient` returned."""
    return f'trap "exit 9" TERM; touch {directory}/obeys.$$; while :; do sleep 0.05; done'


def wait_until_obedient(directory: Path, count: int) -> None:
    """Wait until so many would hear: a task runs before its shell has set a trap."""
    wait_until(lambda: len(list(directory.glob("obeys.*"))) == count)


class DelegatedBench(EffectsInFiles):
    """Places that Slurm fills, and an end that leaves nothing running."""

    engine: SlurmEngine

    def pause(self) -> None:
        return None

    def close(self) -> None:
        for step in self.engine.steps():
            self.engine.stop(step, 0)
        wait_until(lambda: not self.engine.steps())
