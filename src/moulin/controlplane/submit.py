"""From a submission to its admission: prices and impossibilities in, an event or a refusal out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from moulin.controlplane.batch import resolved
from moulin.controlplane.books import BODY_HASH, IDEMPOTENCY_KEY
from moulin.controlplane.commands import Answer, SubmitWorkload, Trial, TryWorkload
from moulin.controlplane.draft import Draft
from moulin.controlplane.lookup import capacity_of
from moulin.controlplane.objects import missing_bundle
from moulin.controlplane.plane import Plane
from moulin.controlplane.rows import view_of
from moulin.controlplane.secrets import missing_secrets
from moulin.domain.errors import (
    BudgetExceeded,
    IdempotencyMismatch,
    LicenceNotAccepted,
    MoulinError,
    NotFound,
    QuotaExceeded,
    Refused,
)
from moulin.domain.events import WorkloadRefused, WorkloadSubmitted
from moulin.domain.factory import Project
from moulin.domain.ids import NodeId, OrganisationId, WorkloadId
from moulin.domain.lease import checked_lease
from moulin.domain.plan import Place
from moulin.domain.reasons import Reason, ReasonCode, hint_of, sentence
from moulin.domain.terms import not_served
from moulin.domain.units import format_scaled
from moulin.domain.usage import Meter
from moulin.domain.views import IdempotencyRecord, WorkloadView
from moulin.domain.workload import (
    Submission,
    WorkloadKind,
    WorkloadSpec,
    choices_of,
    units_wanted,
)
from moulin.ledger import book_at, find_price
from moulin.policy import Admitted, Denied, admit
from moulin.policy.admit import UnitPrice, held_s, reservation_neur
from moulin.scheduler import longest_time_s, possible, possible_nodes, trial

HELD_METERS = (Meter.CPU_MILLI_MS, Meter.MEMORY_MB_MS, Meter.ACCELERATOR_MS)
TENTH_GB = 10**8


def submit_workload(plane: Plane, draft: Draft, command: SubmitWorkload) -> Callable[[], Answer]:
    """Draft the admission of a workload, or raise its refusal with the reasons.

    Raises `BudgetExceeded`, `QuotaExceeded`, `Refused`, `NotFound`, `IdempotencyMismatch`.
    """
    repeated = _repeated(plane, draft, command)
    if repeated is not None:
        return lambda: _stored_view(plane, draft, repeated)
    submission, met, never = _submission(plane, draft, command, command.id)
    admission = Denied(reasons=never) if never else _admission(plane, draft, submission)
    if isinstance(admission, Denied):
        draft.append(
            WorkloadRefused(submission=submission, reasons=admission.reasons),
            actor=command.principal.key,
            project=submission.project,
        )
        raise refusal(f"submit {submission.spec.name!r}", admission.reasons)
    draft.append(
        WorkloadSubmitted(
            submission=submission,
            reserved_neur=admission.reserved_neur,
            policy_decision=admission.decision,
            model_digest=_model_digest(plane, submission),
            met=met,
        ),
        actor=command.principal.key,
        project=submission.project,
        labels=_labels(command),
    )
    _remember(draft, command, submission.id)
    return lambda: draft.views.get(submission.id) or view_of(draft.books, submission.id)


def try_workload(plane: Plane, draft: Draft, command: TryWorkload) -> Callable[[], Answer]:
    """Say what a submission would meet now; nothing is drafted."""
    submission, _, never = _submission(plane, draft, command, WorkloadId("trial"))
    admission = Denied(reasons=never) if never else _admission(plane, draft, submission)
    spec = submission.spec
    if isinstance(admission, Denied):
        answer = Trial(is_possible=False, reasons=admission.reasons, time_limit_s=spec.time_limit_s)
        return lambda: answer
    outcome = trial(draft.books.schedule, submission, draft.now_ns, plane.policy)
    answer = Trial(
        is_possible=True,
        nodes=_nodes(outcome),
        zones=_zones(draft, outcome),
        reasons=() if isinstance(outcome, Place) else outcome,
        time_limit_s=spec.time_limit_s,
        reserved_neur=admission.reserved_neur,
        energy_mj=_energy_mj_max(draft, outcome, spec),
    )
    return lambda: answer


def refusal(attempted: str, reasons: Sequence[Reason]) -> MoulinError:
    """Make the error an edge shows from the reasons of a refusal; the first one names its class."""
    kinds: dict[ReasonCode, type[MoulinError]] = {
        ReasonCode.BUDGET_EXCEEDED: BudgetExceeded,
        ReasonCode.INSUFFICIENT_QUOTA: QuotaExceeded,
        ReasonCode.LICENCE_NOT_ACCEPTED: LicenceNotAccepted,
    }
    kind = kinds.get(reasons[0].code, Refused)
    return kind(
        f"{attempted}: " + "; ".join(sentence(reason) for reason in reasons),
        hint=hint_of(reasons[0]) or "change the request; waiting would not help",
        details={
            "reasons": [
                {"code": reason.code.value, "parameters": dict(reason.parameters)}
                for reason in reasons
            ]
        },
    )


def _repeated(plane: Plane, draft: Draft, command: SubmitWorkload) -> WorkloadId | None:
    """Return the workload an idempotency key already made."""
    wanted = command.idempotency
    if wanted is None:
        return None
    made = _made_by(plane, draft, command.project, wanted.key)
    if made is None:
        return None
    workload, body_hash = made
    if body_hash != wanted.body_hash:
        raise IdempotencyMismatch(
            f"submit with idempotency key {wanted.key!r}: it was used with another body",
            hint="use a new key for a new request",
        )
    return workload


def _made_by(plane: Plane, draft: Draft, project: str, key: str) -> tuple[WorkloadId, str] | None:
    repeats = draft.books.repeats
    found = repeats.made.get((project, key))
    if found is not None or repeats.is_complete:
        return found
    record = plane.ports.store.idempotency(project, key)
    return (WorkloadId(record.body), record.body_hash) if record is not None else None


def _labels(command: SubmitWorkload) -> dict[str, str]:
    wanted = command.idempotency
    return {IDEMPOTENCY_KEY: wanted.key, BODY_HASH: wanted.body_hash} if wanted else {}


def _remember(draft: Draft, command: SubmitWorkload, workload: str) -> None:
    if command.idempotency is None:
        return
    draft.idempotency[(command.project, command.idempotency.key)] = IdempotencyRecord(
        project=command.project,
        key=command.idempotency.key,
        body_hash=command.idempotency.body_hash,
        status=201,
        body=workload,
        created_at_ns=draft.now_ns,
    )


def _stored_view(plane: Plane, draft: Draft, workload: WorkloadId) -> WorkloadView:
    if workload in draft.books.schedule.workloads:
        return view_of(draft.books, workload)
    found = plane.ports.store.workload(workload)
    if found is None:
        raise NotFound(f"read {workload}: its record was removed after its retention time")
    return found


def _submission(
    plane: Plane, draft: Draft, command: SubmitWorkload | TryWorkload, workload: WorkloadId
) -> tuple[Submission, tuple[str, ...], tuple[Reason, ...]]:
    """Return the submission, what of its `after` is met already, and what of it never can be."""
    declared = draft.books.project(command.project)
    if declared is None:
        raise NotFound(
            f"submit to project {command.project!r}: there is no such project",
            hint="`moulin status` lists the projects you may use",
        )
    spec, met, never = resolved(plane, draft, command.project, command.spec)
    never += tuple(missing_secrets(draft, command.project, spec.task))
    if isinstance(command, SubmitWorkload):  # who only tries has not sent it yet
        never += tuple(missing_bundle(draft, command.project, spec.task))
    submission = Submission(
        id=workload,
        organisation=OrganisationId(declared.organisation),
        project=command.project,
        spec=_completed(plane, spec),
        submitted_by=command.principal.name,
        submitted_at_ns=draft.now_ns,
    )
    return _limited(draft, declared, submission), met, never


def _limited(draft: Draft, project: Project, submission: Submission) -> Submission:
    """Give a job that names no time limit the project's, or the longest one that it can get."""
    spec = submission.spec
    if spec.kind is not WorkloadKind.JOB or spec.time_limit_s:
        return submission
    longest_s = longest_time_s(draft.books.schedule, submission)
    limit_s = min(project.job_time_limit_s, longest_s) if longest_s else project.job_time_limit_s
    return replace(submission, spec=replace(spec, time_limit_s=limit_s))


def _completed(plane: Plane, spec: WorkloadSpec) -> WorkloadSpec:
    """Fill in what a spec leaves to the factory: a lease's login, endpoints' memory and variant."""
    if spec.lease is not None:
        spec = replace(spec, lease=checked_lease(spec.lease, spec.time_limit_s))
    if spec.endpoint is not None:
        facts = plane.ports.launcher.facts(spec.endpoint)
        needed = max(spec.resources.memory_bytes, facts.memory_bytes)
        # Named now, so that every replica ever started serves what the receipts' digest says.
        variant = spec.endpoint.variant or facts.variant
        spec = replace(
            spec,
            resources=replace(spec.resources, memory_bytes=needed),
            endpoint=replace(
                spec.endpoint,
                variant=variant,
                ability=facts.ability,
                infill=facts.infill,
                context_tokens=facts.context_tokens,
            ),
        )
    return spec


def _admission(plane: Plane, draft: Draft, submission: Submission) -> Admitted | Denied:
    project = draft.books.project(submission.project)
    dearest = _dearest(draft, submission)
    return admit(
        _as_held(draft, dearest),
        (*_terms(plane, draft, submission), *_impossible(plane, draft, submission)),
        _prices(draft, dearest),
        draft.books.balances.available_neur(submission.project),
        project.budget_neur if project else -1,
    )


def _dearest(draft: Draft, submission: Submission) -> Submission:
    """Return the submission with that of its alternatives that may cost most: it may get any."""
    spec = submission.spec
    if not spec.alternatives:
        return submission
    asked = [
        replace(submission, spec=replace(spec, resources=each, alternatives=()))
        for each in choices_of(spec)
    ]
    return max(asked, key=lambda each: reservation_neur(each, _prices(draft, each)))


def check_scale(plane: Plane, draft: Draft, submission: Submission, added: int) -> None:
    """Raise `BudgetExceeded` when the first hour of more replicas is not available."""
    if submission.spec.endpoint is None or added <= 0:
        return
    admission = _more_replicas(draft, submission, added)
    if isinstance(admission, Denied):
        name = submission.spec.name
        raise refusal(f"add {added} replica(s) to {name!r}", admission.reasons)


def can_pay_replica(draft: Draft, submission: Submission) -> bool:
    """Say whether the first hour of one more replica is available."""
    return isinstance(_more_replicas(draft, submission, 1), Admitted)


def _more_replicas(draft: Draft, submission: Submission, added: int) -> Admitted | Denied:
    endpoint = submission.spec.endpoint
    assert endpoint is not None
    spec = replace(submission.spec, endpoint=replace(endpoint, replicas=added))
    project = draft.books.project(submission.project)
    return admit(
        replace(submission, spec=spec),
        (),
        _prices(draft, submission),
        draft.books.balances.available_neur(submission.project),
        project.budget_neur if project else -1,
    )


def readmitted(
    plane: Plane, draft: Draft, submission: Submission, replicas: int
) -> tuple[Submission, str, str]:
    """Return an endpoint under another spec, completed, with the decision and the model's digest.

    Judged as a new one of that many replicas would be: raises what `submit_workload` does, and
    `NotFound` when its project is gone.
    """
    if draft.books.project(submission.project) is None:
        raise NotFound(f"roll out {submission.id}: its project is gone")
    spec = _completed(plane, submission.spec)
    submission = replace(submission, spec=spec)
    if spec.endpoint is not None:
        spec = replace(spec, endpoint=replace(spec.endpoint, replicas=replicas))
    admission = _admission(plane, draft, replace(submission, spec=spec))
    if isinstance(admission, Denied):
        raise refusal(f"roll out {submission.spec.name!r}", admission.reasons)
    return submission, admission.decision, _model_digest(plane, submission)


def _as_held(draft: Draft, submission: Submission) -> Submission:
    """Return the submission with what it would hold: a lease, the largest node it may get."""
    spec = submission.spec
    if spec.kind is not WorkloadKind.LEASE:
        return submission
    nodes = possible_nodes(draft.books.schedule, submission)
    if not nodes:
        return submission
    resources = replace(
        spec.resources,
        cpu_milli=max(node.cpu_milli for node in nodes),
        memory_bytes=max(node.memory_bytes for node in nodes),
        accelerators=max(node.accelerators for node in nodes),
    )
    return replace(submission, spec=replace(spec, resources=resources))


def _model_digest(plane: Plane, submission: Submission) -> str:
    endpoint = submission.spec.endpoint
    return plane.ports.launcher.facts(endpoint).digest if endpoint else ""


def _terms(plane: Plane, draft: Draft, submission: Submission) -> Iterator[Reason]:
    """Yield why a model may not be deployed at all: retired, or a licence nobody accepted."""
    endpoint = submission.spec.endpoint
    if endpoint is None:
        return
    terms = plane.ports.launcher.facts(endpoint).terms
    reason = terms and not_served(
        terms, submission.organisation, draft.books.licences, draft.now_ns
    )
    if reason:
        yield reason


def _impossible(plane: Plane, draft: Draft, submission: Submission) -> tuple[Reason, ...]:
    reasons = possible(draft.books.schedule, submission, plane.policy)
    return tuple(
        _too_large(draft, submission) or reason
        if reason.code is ReasonCode.EXCEEDS_NODE
        else reason
        for reason in reasons
    )


def _too_large(draft: Draft, submission: Submission) -> Reason | None:
    """Return that a model needs more memory than any node has, in gigabytes, if that is so."""
    endpoint = submission.spec.endpoint
    needed = submission.spec.resources.memory_bytes
    rows = draft.books.schedule.nodes.rows
    largest = max((row.capacity.memory_bytes for row in rows if row.is_present), default=0)
    if endpoint is None or needed <= largest:
        return None
    return Reason(
        code=ReasonCode.MODEL_TOO_LARGE,
        parameters={
            "model": endpoint.model,
            "needed": f"{format_scaled(-(-needed // TENTH_GB), 10, decimals_min=1)} GB",
            "largest": f"{format_scaled(largest // TENTH_GB, 10, decimals_min=1)} GB",
        },
    )


def _prices(draft: Draft, submission: Submission) -> tuple[UnitPrice, ...]:
    endpoint = submission.spec.endpoint
    return prices_of(
        draft, endpoint.model if endpoint else submission.spec.resources.accelerator_class
    )


def prices_of(draft: Draft, subject: str) -> tuple[UnitPrice, ...]:
    """Return what holding a subject (a model, a class of accelerators) costs now, by meter."""
    book = book_at(draft.books.price_books(), draft.now_ns)
    found = (find_price(book, meter, subject) for meter in HELD_METERS)
    return tuple(
        UnitPrice(meter=price.meter, unit_price_neur=price.unit_price_neur, per=price.per)
        for price in found
        if price is not None
    )


def _nodes(outcome: Place | tuple[Reason, ...]) -> tuple[NodeId, ...]:
    return tuple(task.node for task in outcome.tasks) if isinstance(outcome, Place) else ()


def _zones(draft: Draft, outcome: Place | tuple[Reason, ...]) -> tuple[str, ...]:
    zones = {draft.books.schedule.zone_of_node(node) for node in _nodes(outcome)}
    return tuple(sorted(zones))


def _energy_mj_max(draft: Draft, outcome: Place | tuple[Reason, ...], spec: WorkloadSpec) -> int:
    """Estimate the energy of what is reserved for, at full use of what is held, PUE included."""
    total = 0
    for node in _nodes(outcome):
        capacity = capacity_of(draft.books.schedule, node)
        site = draft.books.site_of(draft.books.schedule.zone_of_node(node))
        share_mw = capacity.peak_mw * spec.resources.cpu_milli // max(1, capacity.cpu_milli)
        pue_ppm = site.pue_ppm if site else 1_000_000
        total += share_mw * held_s(spec) * pue_ppm // 1_000_000
    return total * units_wanted(spec)
