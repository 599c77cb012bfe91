"""The engine of one machine: a small shim per task, everything it knows on disk."""
