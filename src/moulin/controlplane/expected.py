"""What answers of a replica are expected to take, for their headers: measured before, else estimated.

Receipts never depend on it: they state what was metered.
"""

from typing import Final

from moulin.catalog.machines import MACHINE_CLASSES
from moulin.catalog.prior import Held, prior_energy
from moulin.controlplane.books import Books
from moulin.controlplane.plane import Plane, TokenEnergy
from moulin.domain.errors import MoulinError
from moulin.domain.factory import MachineClass, ObjectKind, Site
from moulin.domain.observation import NodeCapacity
from moulin.domain.snapshot import ESTIMATED
from moulin.domain.workload import EndpointSpec
from moulin.scheduler import TaskRow

UNKNOWN: Final = TokenEnergy(0, 0, "", 0)


def expected_energy(
    plane: Plane, books: Books, task: TaskRow, endpoint: EndpointSpec | None, site: Site
) -> TokenEnergy:
    """Return energy per token of a replica: its endpoint's last metered one, else a first estimate.

    Cost: the launcher is asked once per replica.
    """
    attempt = books.schedule.attempts[task.attempt]
    measured = plane.provisional_uj.get(attempt.workload)
    if measured is not None:
        return measured
    if endpoint is None:
        return UNKNOWN
    known = plane.priors.get(task.attempt)
    if known is None:
        known = plane.priors[task.attempt] = _prior(plane, books, task, endpoint, site)
    return known


def _prior(
    plane: Plane, books: Books, task: TaskRow, endpoint: EndpointSpec, site: Site
) -> TokenEnergy:
    try:
        work = plane.ports.launcher.facts(endpoint).work
    except MoulinError:
        return UNKNOWN  # it runs all the same; its headers come with the first metered interval
    row = books.schedule.nodes.row(task.node)
    if work is None or row is None:
        return UNKNOWN
    capacity = row.capacity
    machine = _devices_class(books, capacity) if task.devices else None
    held = Held(
        power_mw=_power_mw(capacity, task, machine),
        cpu_milli=task.cpu_milli,
        devices=len(task.devices),
        parallel_requests=endpoint.parallel_requests,
        context_tokens=endpoint.context_tokens,
        pue_ppm=site.pue_ppm,
    )
    found = prior_energy(work, held, machine)
    if found is None:
        return UNKNOWN
    return TokenEnergy(found.input_uj, found.output_uj, ESTIMATED, found.uncertainty_ppm)


def _devices_class(books: Books, capacity: NodeCapacity) -> MachineClass | None:
    declared = books.declared.get((ObjectKind.MACHINE_CLASS, capacity.accelerator_class))
    if declared is not None and isinstance(declared.value, MachineClass):
        return declared.value
    return MACHINE_CLASSES.get(capacity.accelerator_class)


def _power_mw(capacity: NodeCapacity, task: TaskRow, machine: MachineClass | None) -> int:
    """Return the power of what a replica holds when it is busy; 0 where nobody states it."""
    if task.devices:
        return machine.peak_mw * len(task.devices) if machine is not None else 0
    return capacity.peak_mw * task.cpu_milli // capacity.cpu_milli if capacity.cpu_milli else 0
