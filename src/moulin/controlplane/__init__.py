"""The control plane: one synchronous cycle that composes the stages (start at `cycle.py`)."""
