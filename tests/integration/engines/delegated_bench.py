"""What benches share that reach a delegated pool of a real Slurm over HTTP."""

from moulin.engines.slurm.engine import SlurmEngine
from tests.conformance.engine_bench import EffectsInFiles, wait_until


class DelegatedBench(EffectsInFiles):
    """Places that Slurm fills, and an end that leaves nothing running."""

    engine: SlurmEngine

    def pause(self) -> None:
        return None

    def close(self) -> None:
        for step in self.engine.steps():
            self.engine.stop(step, 0)
        wait_until(lambda: not self.engine.steps())
