"""Leases of the stand-in: one per project with a login, and what it answers to commands about them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from moulin.controlplane import commands as c
from moulin.domain.errors import NotFound
from moulin.domain.ids import make_id
from moulin.domain.lease import LeaseOffer, LeaseOffers
from moulin.domain.views import TaskView, UnitView, WorkloadView
from moulin.domain.workload import LeaseSpec, WorkloadKind, WorkloadSpec
from moulin.ports.store import WorkloadFilter

KEY: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDyuqZNm4MCIChZcFyQP7s4MaVIFBmnLn+SMKVR6l2oJ"
LOGIN: Final = f"127.0.0.1:4022 mill {KEY}"
STARTED_NS: Final = 1_790_000_000_000_000_000
SPEC: Final = WorkloadSpec(
    kind=WorkloadKind.LEASE, name="bench", lease=LeaseSpec(ssh_keys=(KEY,)), time_limit_s=3600
)


def lease_row(project: str, organisation: str, number: int) -> WorkloadView:
    drawn = make_id("lse", STARTED_NS, number)
    task = TaskView(rank=0, step=f"{drawn}.u0.g1.t0", node="n0", zone="z", address=LOGIN)
    return WorkloadView(
        id=drawn,
        kind="lease",
        name="bench",
        organisation=organisation,
        project=project,
        state="running",
        spec=SPEC,
        submitted_by="somebody",
        submitted_at_ns=STARTED_NS,
        started_at_ns=STARTED_NS,
        units=(UnitView(unit=0, generation=1, state="running", tasks=(task,)),),
    )


def _offers(standin: Any, command: c.ReadOffers) -> LeaseOffers:
    offer = LeaseOffer(
        name="z/m",
        zone="z",
        country="FR",
        machine_class="m",
        nodes=2,
        free=1,
        cpu_milli=8_000,
        memory_bytes=2**34,
        node_hour_neur=2**60,
        price_book="2026",
    )
    return LeaseOffers(items=(offer,))


def _order(standin: Any, command: c.OrderLease) -> WorkloadView:
    standin.actors.append(command.principal.key)
    wanted = WorkloadFilter(project=command.project, kind="lease", limit=1)
    known = next(iter(standin.store.workloads(wanted)), None)
    if known is None:
        raise NotFound(f"lease for project {command.project!r}: there is no such project")
    return replace(known, id=command.id, started_at_ns=0, state="admitted", units=())


def _extend(standin: Any, command: c.ExtendLease) -> WorkloadView:
    standin.actors.append(command.principal.key)
    view = standin.store.workload(command.workload)
    assert view
    limit_s = view.spec.time_limit_s + command.by_s
    return replace(view, spec=replace(view.spec, time_limit_s=limit_s))


HANDLERS: Final[Mapping[type, Callable[[Any, Any], Any]]] = {
    c.ReadOffers: _offers,
    c.OrderLease: _order,
    c.ExtendLease: _extend,
}
