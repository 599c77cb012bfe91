"""The engine of one machine: a small shim per task, everything it knows on disk."""

from moulin.engines.local.cgroup import CgroupBase, find_cgroup_base
from moulin.engines.local.engine import LocalEngine
from moulin.engines.local.nodes import divide_machine

__all__ = ["CgroupBase", "LocalEngine", "divide_machine", "find_cgroup_base"]
