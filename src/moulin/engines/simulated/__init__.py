"""The engine without machines: the public twin of every real one, for tests and simulation."""

from moulin.engines.simulated.engine import SimulatedEngine
from moulin.engines.simulated.world import Run, World

__all__ = ["Run", "SimulatedEngine", "World"]
