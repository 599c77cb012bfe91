"""What people and gateways say of endpoints: other numbers, other specs, load, and who left whom.

It drafts events; how many replicas follow from them, and which go, is decided by the scheduler.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from moulin.controlplane.commands import Answer, RolloutEndpoint, ScaleEndpoint
from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.controlplane.rows import view_of
from moulin.controlplane.submit import can_pay_replica, check_scale, readmitted
from moulin.domain.control import RolloutWanted
from moulin.domain.errors import Conflict, InvalidRequest, NotFound
from moulin.domain.events import (
    DrainConfirmed,
    EndpointRolledOut,
    LoadReported,
    WorkloadScaled,
)
from moulin.domain.ids import WorkloadId
from moulin.domain.snapshot import GatewaySnapshot, SyncRequest
from moulin.domain.workload import EndpointSpec, Resources, Scaling, WorkloadSpec
from moulin.scheduler import Serving, WorkloadRow, growing, is_load_news

REPLICAS_MAX: Final = 1000
NS_PER_S: Final = 1_000_000_000


def scale_endpoint(plane: Plane, draft: Draft, command: ScaleEndpoint) -> Callable[[], Answer]:
    """Set how many replicas an endpoint has, or between which numbers its load moves it.

    Raises `NotFound`, `InvalidRequest`, `Conflict`, or `BudgetExceeded` for replicas that cannot be
    paid.
    """
    row, _ = _endpoint(draft, command.workload, "scale")
    check_scaling(command.scaling, command.replicas)
    replicas = command.replicas
    if command.scaling is not None:
        held = max(row.units_wanted, command.scaling.replicas_min)
        replicas = min(held, command.scaling.replicas_max)
    check_scale(plane, draft, row.submission, replicas - row.units_wanted)
    draft.append(
        WorkloadScaled(
            workload=command.workload,
            replicas=replicas,
            by=command.principal.name,
            scaling=command.scaling,
        ),
        actor=command.principal.key,
        project=row.submission.project,
    )
    return lambda: view_of(draft.books, command.workload)


def check_scaling(scaling: Scaling | None, replicas: int) -> None:
    """Raise `InvalidRequest` for numbers of replicas that no endpoint can have."""
    if not 0 <= replicas <= REPLICAS_MAX:
        raise InvalidRequest(f"scale to {replicas}: use 0 to {REPLICAS_MAX} replicas")
    if scaling is not None and not 0 <= scaling.replicas_min <= scaling.replicas_max:
        raise InvalidRequest(
            f"scale from {scaling.replicas_min} to {scaling.replicas_max} replicas",
            hint="the least number comes first",
        )


def rollout_endpoint(plane: Plane, draft: Draft, command: RolloutEndpoint) -> Callable[[], Answer]:
    """Give an endpoint another spec, or the one before; its replicas follow without a cut stream.

    Raises `NotFound`, `InvalidRequest`, `Conflict`, and what a submission raises.
    """
    row, serving = _endpoint(draft, command.workload, "roll out")
    wanted = command.wanted
    if wanted.is_back:
        revision, spec = _spec_before(serving, row, wanted)
    else:
        revision, spec = serving.revision_last + 1, _spec_after(row.submission.spec, wanted)
    submission, decision, digest = readmitted(
        plane, draft, replace(row.submission, spec=spec), row.units_wanted
    )
    draft.append(
        EndpointRolledOut(
            workload=command.workload,
            spec=submission.spec,
            revision=revision,
            by=command.principal.name,
            policy_decision=decision,
            model_digest=digest,
        ),
        actor=command.principal.key,
        project=row.submission.project,
    )
    return lambda: view_of(draft.books, command.workload)


def _endpoint(draft: Draft, workload: WorkloadId, doing: str) -> tuple[WorkloadRow, Serving]:
    row = draft.books.schedule.workloads.get(workload)
    if row is None:
        raise NotFound(f"{doing} {workload}: there is no such endpoint")
    if row.serving is None:
        raise InvalidRequest(
            f"{doing} {workload}: it is a {row.submission.spec.kind}",
            hint="only endpoints have replicas",
        )
    if row.is_final or row.stop_requested_by:
        raise Conflict(
            f"{doing} {workload}: it is {row.state if row.is_final else 'stopping'}",
            hint="deploy it again to have an endpoint",
        )
    return row, row.serving


def _spec_before(
    serving: Serving, row: WorkloadRow, wanted: RolloutWanted
) -> tuple[int, WorkloadSpec]:
    if wanted != RolloutWanted(is_back=True):
        raise InvalidRequest(
            f"roll {row.submission.id} back to something else",
            hint="going back takes no other wish; roll out what you want instead",
        )
    former = serving.former.get(serving.before)
    if former is None:
        raise Conflict(
            f"roll {row.submission.id} back: it never served anything else",
            hint="`moulin rollout NAME --model MODEL` rolls out another model",
        )
    return serving.before, former.spec


def _spec_after(spec: WorkloadSpec, wanted: RolloutWanted) -> WorkloadSpec:
    """Return a spec with what is wanted; a model that changes brings its own variant and memory."""
    assert spec.endpoint is not None
    endpoint: EndpointSpec = spec.endpoint
    is_same_model = wanted.model in ("", endpoint.model)
    variant = wanted.variant or (endpoint.variant if is_same_model else "")
    return replace(
        spec,
        endpoint=replace(
            endpoint,
            model=wanted.model or endpoint.model,
            variant=variant,
            context_tokens=wanted.context_tokens or endpoint.context_tokens,
            parallel_requests=wanted.parallel_requests or endpoint.parallel_requests,
        ),
        resources=replace(
            spec.resources,
            cpu_milli=wanted.cpu_milli or spec.resources.cpu_milli,
            memory_bytes=wanted.memory_bytes or Resources().memory_bytes,
        ),
    )


# -- what gateways say ----------------------------------------------------------------------------


def take_load(draft: Draft, request: SyncRequest, snapshot: GatewaySnapshot) -> None:
    """Draft what a gateway's load changes, and which replicas it has left.

    A gateway that serves from the present snapshot sends nothing to replicas that drain: they are
    not in it.
    """
    schedule = draft.books.schedule
    epoch = (request.gateway, request.epoch)
    if request.load is None or epoch not in schedule.gateways:
        return
    followed = tuple(
        load
        for load in request.load.endpoints
        if _follows_load(schedule.workloads.get(WorkloadId(load.endpoint)))
    )
    if is_load_news(schedule, epoch, followed, draft.now_ns):
        draft.append(
            LoadReported(gateway=request.gateway, gateway_epoch=request.epoch, endpoints=followed)
        )
    if request.snapshot_version != snapshot.version:
        return
    for attempt, drain in list(schedule.drains.items()):
        is_idle = attempt not in request.load.busy
        if epoch not in drain.left or (is_idle and not drain.left[epoch]):
            draft.append(
                DrainConfirmed(
                    gateway=request.gateway,
                    gateway_epoch=request.epoch,
                    attempt=attempt,
                    is_idle=is_idle,
                )
            )


def _follows_load(row: WorkloadRow | None) -> bool:
    return row is not None and row.serving is not None and row.serving.scaling is not None


def forget_silent_gateways(plane: Plane, draft: Draft) -> None:
    """Take a gateway that was not heard for so long that it serves nobody new as one without load."""
    schedule = draft.books.schedule
    silent_ns = plane.settings.snapshot_staleness_s * NS_PER_S
    for epoch, load in list(schedule.loads.items()):
        heard_ns = max(plane.heard_ns.get(epoch, 0), plane.led_since_ns, load.at_ns)
        if load.endpoints and draft.now_ns > heard_ns + silent_ns:
            draft.append(LoadReported(gateway=epoch[0], gateway_epoch=epoch[1], endpoints=()))


def frozen_endpoints(draft: Draft) -> tuple[str, ...]:
    """Return the endpoints that want more replicas and whose project cannot pay one for an hour."""
    return tuple(
        row.submission.id
        for row in growing(draft.books.schedule, draft.now_ns)
        if not can_pay_replica(draft, row.submission)
    )
