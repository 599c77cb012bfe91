"""What the stand-in answers to commands that steer a workload: its row as it is, and who asked."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from moulin.controlplane import commands as c
from moulin.domain.control import ElementPage, Stopped
from moulin.domain.views import NodeView


def _row(standin: Any, command: Any) -> Any:
    standin.actors.append(command.principal.key)
    view = standin.store.workload(command.workload)
    assert view
    return view


def _stop_many(standin: Any, command: c.StopWorkloads) -> Stopped:
    standin.actors.append(command.principal.key)
    return Stopped(workloads=(), is_dry_run=command.wanted.is_dry_run)


def _elements(standin: Any, command: c.ReadElements) -> ElementPage:
    view = standin.store.workload(command.workload)
    assert view
    return ElementPage(items=view.units, counts=view.counts)


def _node(standin: Any, command: c.JudgeNode | c.CheckNode) -> NodeView:
    standin.actors.append(command.principal.key)
    return NodeView(
        node=command.node,
        pool="p",
        zone="z",
        engine="e",
        machine_class="m",
        cpu_milli=1,
        cpu_milli_held=0,
        memory_bytes=1,
        memory_bytes_held=0,
    )


HANDLERS: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
    c.ScaleEndpoint: _row,
    c.RolloutEndpoint: _row,
    c.AdjustWorkload: _row,
    c.StopElements: _row,
    c.StopWorkloads: _stop_many,
    c.ReadElements: _elements,
    c.JudgeNode: _node,
    c.CheckNode: _node,
}
