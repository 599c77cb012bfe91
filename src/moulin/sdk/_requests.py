"""Every request of the control API, built as a value; the resources of both clients call these."""

import secrets
from collections.abc import Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

from moulin.domain.control import (
    AdjustWanted,
    AllowancePage,
    Applied,
    ApplyWanted,
    CheckpointInfo,
    DeclaredWanted,
    ElementPage,
    ElementsWanted,
    Explanation,
    FactoryPage,
    FactoryStatus,
    FetchStatus,
    FetchWanted,
    IntervalPage,
    JudgementWanted,
    KeyChange,
    KeyInfo,
    KeyIssued,
    KeyPage,
    KeyRotation,
    KeyWanted,
    LicenceWanted,
    ModelInfo,
    ModelPage,
    NodePage,
    ReceiptPage,
    RolloutWanted,
    ScaleWanted,
    SpendReport,
    Stopped,
    StopWanted,
    Trial,
    UsageReport,
    WebhookInfo,
    WorkloadPage,
)
from moulin.domain.errors import InvalidRequest
from moulin.domain.factory import DeclaredObject, kind_of
from moulin.domain.objects import BatchJob, BatchPage, BatchWanted, StoredObject, StoredPage
from moulin.domain.observation import LogChunk
from moulin.domain.outlook import ModelFit, PriceExplained
from moulin.domain.registration import RegistrationPage
from moulin.domain.secrets import MasterRotated, SecretInfo, SecretPage, SecretWanted
from moulin.domain.terms import LicenceAcceptance
from moulin.domain.views import NodeView, ReceiptView, WorkloadView
from moulin.domain.wire import encode_public
from moulin.domain.workload import Scaling, WorkloadSpec
from moulin.sdk._core import PREFIX, Call, Upload, body_of, reading

T = TypeVar("T")


def status() -> Call[FactoryStatus]:
    """Ask for the factory at a glance."""
    return _get("/status", FactoryStatus)


def submit(project: str, spec: WorkloadSpec, idempotency_key: str) -> Call[WorkloadView]:
    """Submit a workload; an own idempotency key makes it safe to send again."""
    key = idempotency_key or secrets.token_urlsafe(18)
    return Call(
        method="POST",
        path=f"{PREFIX}/projects/{_project(project)}/workloads",
        read=reading(WorkloadView),
        headers={"idempotency-key": key},
        body=body_of(spec),
    )


def try_out(project: str, spec: WorkloadSpec) -> Call[Trial]:
    """Ask what a submission would meet."""
    return _post(f"/projects/{_project(project)}/workloads/try", Trial, spec)


def workloads(
    project: str,
    kind: str,
    states: Sequence[str],
    label: tuple[str, str] | None,
    page: tuple[str, int],
) -> Call[WorkloadPage]:
    """Ask for one page of workloads; `page` is (cursor, limit)."""
    cursor, limit = page
    return _get(
        "/workloads",
        WorkloadPage,
        project=project,
        kind=kind,
        state=tuple(states),
        label="=".join(label) if label else "",
        cursor=cursor,
        limit=limit,
    )


def workload(id: str) -> Call[WorkloadView]:
    """Ask for one workload."""
    return _get(f"/workloads/{_segment(id)}", WorkloadView)


def stop(id: str) -> Call[WorkloadView]:
    """Ask for the end of a workload; once is as good as twice."""
    return _post(f"/workloads/{_segment(id)}/stop", WorkloadView, None)


def stop_many(project: str, wanted: StopWanted) -> Call[Stopped]:
    """Ask for the end of all that fits; once is as good as twice."""
    return _post(f"/projects/{_project(project)}/workloads/stop", Stopped, wanted)


def stop_elements(id: str, indices: Sequence[int]) -> Call[WorkloadView]:
    """Ask for the end of some elements of an array; once is as good as twice."""
    wanted = ElementsWanted(indices=tuple(indices))
    return _post(f"/workloads/{_segment(id)}/elements/stop", WorkloadView, wanted)


def elements(id: str, indices: Sequence[int], states: Sequence[str]) -> Call[ElementPage]:
    """Ask for elements of an array."""
    return _get(
        f"/workloads/{_segment(id)}/elements",
        ElementPage,
        index=tuple(map(str, indices)),
        state=tuple(states),
    )


def adjust(id: str, wanted: AdjustWanted) -> Call[WorkloadView]:
    """Hold, release or reprioritise a workload; once is as good as twice."""
    return _post(f"/workloads/{_segment(id)}/adjust", WorkloadView, wanted)


def scale(id: str, replicas: int, scaling: Scaling | None) -> Call[WorkloadView]:
    """Set an endpoint's replicas, or between which numbers they move; once is as good as twice."""
    wanted = ScaleWanted(replicas=replicas, scaling=scaling)
    return _post(f"/workloads/{_segment(id)}/scale", WorkloadView, wanted)


def rollout(id: str, wanted: RolloutWanted) -> Call[WorkloadView]:
    """Let an endpoint serve something else."""
    return _post(f"/workloads/{_segment(id)}/rollout", WorkloadView, wanted)


def why(id: str) -> Call[Explanation]:
    """Ask why a workload does not run."""
    return _get(f"/workloads/{_segment(id)}/why", Explanation)


def logs(id: str, unit: int, rank: int, cursor: int, limit: int) -> Call[LogChunk]:
    """Ask for output of one task from a byte on."""
    return _get(
        f"/workloads/{_segment(id)}/logs",
        LogChunk,
        unit=unit,
        rank=rank,
        cursor=cursor,
        limit=limit,
    )


def factory() -> Call[FactoryPage]:
    """Ask for the declared objects."""
    return _get("/factory", FactoryPage)


def apply(managed_by: str, objects: Sequence[DeclaredObject], *, is_dry_run: bool) -> Call[Applied]:
    """Make the objects of one file true; once is as good as twice."""
    wanted = ApplyWanted(
        managed_by=managed_by,
        objects=tuple(
            DeclaredWanted(kind=kind_of(each), body=encode_public(each)) for each in objects
        ),
        is_dry_run=is_dry_run,
    )
    return _post("/factory/apply", Applied, wanted)


def nodes() -> Call[NodePage]:
    """Ask for the nodes."""
    return _get("/nodes", NodePage)


def registrations() -> Call[RegistrationPage]:
    """Ask for the replicas that registered."""
    return _get("/registrations", RegistrationPage)


def judge_node(node: str, doing: str, words: str) -> Call[NodeView]:
    """Put a node into quarantine or release it; once is as good as twice."""
    return _post(f"/nodes/{_segment(node)}/{doing}", NodeView, JudgementWanted(words=words))


def check_node(node: str) -> Call[NodeView]:
    """Look at a node now."""
    return _post(f"/nodes/{_segment(node)}/check", NodeView, None)


def intervals(node: str, start_ns: int, limit: int) -> Call[IntervalPage]:
    """Ask for metered intervals."""
    return _get("/intervals", IntervalPage, node=node, start_ns=start_ns, limit=limit)


def create_key(project: str, wanted: KeyWanted) -> Call[KeyIssued]:
    """Issue a key. Never sent twice by itself: each sending makes one."""
    return _post(f"/projects/{_project(project)}/keys", KeyIssued, wanted, is_repeatable=False)


def keys(project: str) -> Call[KeyPage]:
    """Ask for a project's keys."""
    return _get(f"/projects/{_project(project)}/keys", KeyPage)


def key(id: str) -> Call[KeyInfo]:
    """Ask for one key."""
    return _get(f"/keys/{_segment(id)}", KeyInfo)


def change_key(id: str, change: KeyChange) -> Call[KeyInfo]:
    """Change a key; once is as good as twice."""
    return Call(
        method="PATCH",
        path=f"{PREFIX}/keys/{_segment(id)}",
        read=reading(KeyInfo),
        body=body_of(change),
    )


def rotate_key(id: str, wanted: KeyRotation) -> Call[KeyIssued]:
    """Issue a key's successor. Never sent twice by itself: each sending makes one."""
    return _post(f"/keys/{_segment(id)}/rotate", KeyIssued, wanted, is_repeatable=False)


def allowances(project: str, user: str) -> Call[AllowancePage]:
    """Ask how a project's allowances stand, or those of one of its users."""
    return _get(f"/projects/{_project(project)}/allowances", AllowancePage, user=user)


def webhook(project: str) -> Call[WebhookInfo]:
    """Ask where a project's alerts go."""
    return _get(f"/projects/{_project(project)}/webhook", WebhookInfo)


def bundle(project: str, digest: str) -> Call[StoredObject]:
    """Ask whether a project keeps a bundle."""
    return _get(f"/projects/{_project(project)}/bundles/{_segment(digest)}", StoredObject)


def bundles(project: str) -> Call[StoredPage]:
    """Ask for a project's bundles."""
    return _get(f"/projects/{_project(project)}/bundles", StoredPage)


def store_bundle(project: str, digest: str, upload: Upload) -> Call[StoredObject]:
    """Store a bundle. Its file is read as it goes, so it is not sent again by itself."""
    return Call(
        method="PUT",
        path=f"{PREFIX}/projects/{_project(project)}/bundles/{_segment(digest)}",
        read=reading(StoredObject),
        is_repeatable=False,
        upload=upload,
    )


def delete_bundle(project: str, digest: str) -> Call[StoredObject]:
    """Delete a bundle. Sent again it would find nothing: never repeated by itself."""
    return Call(
        method="DELETE",
        path=f"{PREFIX}/projects/{_project(project)}/bundles/{_segment(digest)}",
        read=reading(StoredObject),
        is_repeatable=False,
    )


def set_secret(project: str, name: str, wanted: SecretWanted) -> Call[SecretInfo]:
    """Set a secret; once is as good as twice."""
    return Call(
        method="PUT",
        path=f"{PREFIX}/projects/{_project(project)}/secrets/{_segment(name)}",
        read=reading(SecretInfo),
        body=body_of(wanted),
    )


def list_secrets(project: str) -> Call[SecretPage]:
    """Ask for the names of a project's secrets."""
    return _get(f"/projects/{_project(project)}/secrets", SecretPage)


def delete_secret(project: str, name: str) -> Call[SecretInfo]:
    """Delete a secret. Sent again it would find nothing: never repeated by itself."""
    return Call(
        method="DELETE",
        path=f"{PREFIX}/projects/{_project(project)}/secrets/{_segment(name)}",
        read=reading(SecretInfo),
        is_repeatable=False,
    )


def rotate_master() -> Call[MasterRotated]:
    """Have the master key of all secrets replaced; once more does no harm."""
    return _post("/secrets/rotate", MasterRotated, None)


def spend(by: str, project: str) -> Call[SpendReport]:
    """Ask for sums by key, model, user or label."""
    return _get("/spend", SpendReport, by=by, project=project)


def upload_file(upload: Upload) -> Call[StoredObject]:
    """Store a file. Never sent twice by itself: each sending makes one."""
    return Call(
        method="POST",
        path=f"{PREFIX}/files",
        read=reading(StoredObject),
        is_repeatable=False,
        upload=upload,
    )


def files(purpose: str, page: tuple[str, int]) -> Call[StoredPage]:
    """Ask for one page of files; `page` is (cursor, limit)."""
    return _get("/files", StoredPage, purpose=purpose, cursor=page[0], limit=page[1])


def file(id: str) -> Call[StoredObject]:
    """Ask what is known of a file."""
    return _get(f"/files/{_segment(id)}", StoredObject)


def file_content(id: str) -> Call[bytes]:
    """Ask for a file's bytes."""
    path = f"{PREFIX}/files/{_segment(id)}/content"
    return Call(method="GET", path=path, read=lambda answer: answer.body)


def delete_file(id: str) -> Call[StoredObject]:
    """Delete a file."""
    path = f"{PREFIX}/files/{_segment(id)}"
    return Call(method="DELETE", path=path, read=reading(StoredObject), is_repeatable=False)


def open_batch(wanted: BatchWanted) -> Call[BatchJob]:
    """Open a batch. Never sent twice by itself: each sending makes one."""
    return _post("/batches", BatchJob, wanted, is_repeatable=False)


def batches(page: tuple[str, int]) -> Call[BatchPage]:
    """Ask for one page of batches; `page` is (cursor, limit)."""
    return _get("/batches", BatchPage, cursor=page[0], limit=page[1])


def batch(id: str) -> Call[BatchJob]:
    """Ask for one batch with how far it is."""
    return _get(f"/batches/{_segment(id)}", BatchJob)


def cancel_batch(id: str) -> Call[BatchJob]:
    """Begin no further line; once is as good as twice."""
    return _post(f"/batches/{_segment(id)}/cancel", BatchJob, None)


def delete_batch(id: str) -> Call[BatchJob]:
    """Forget a batch that has ended."""
    path = f"{PREFIX}/batches/{_segment(id)}"
    return Call(method="DELETE", path=path, read=reading(BatchJob), is_repeatable=False)


def revoke_key(id: str) -> Call[KeyInfo]:
    """Revoke a key; once is as good as twice."""
    return Call(method="DELETE", path=f"{PREFIX}/keys/{_segment(id)}", read=reading(KeyInfo))


def receipts(project: str, workload: str, cursor: str, limit: int) -> Call[ReceiptPage]:
    """Ask for one page of receipts."""
    return _get(
        "/receipts", ReceiptPage, project=project, workload=workload, cursor=cursor, limit=limit
    )


def receipt(id: str) -> Call[ReceiptView]:
    """Ask for one receipt."""
    return _get(f"/receipts/{_segment(id)}", ReceiptView)


def receipt_file(id: str) -> Call[bytes]:
    """Ask for the file that verifies offline."""
    return Call(
        method="GET", path=f"{PREFIX}/receipts/{_segment(id)}/file", read=lambda answer: answer.body
    )


def checkpoint(origin: str) -> Call[CheckpointInfo]:
    """Ask for the newest signed tree head."""
    return _get("/evidence/checkpoint", CheckpointInfo, origin=origin)


def public_key() -> Call[bytes]:
    """Ask for the public key of the evidence."""
    return Call(method="GET", path=f"{PREFIX}/evidence/public-key", read=lambda answer: answer.body)


def usage(project: str) -> Call[UsageReport]:
    """Ask for sums of usage."""
    return _get("/usage", UsageReport, project=project)


def models() -> Call[ModelPage]:
    """Ask for the catalogue."""
    return _get("/models", ModelPage)


def model(name: str) -> Call[ModelInfo]:
    """Ask for one model with how far its fetch is."""
    return _get(f"/models/{_segment(name)}", ModelInfo)


def fetch_model(name: str, variant: str, source: str) -> Call[FetchStatus]:
    """Start a fetch unless it runs or is done; once is as good as twice."""
    return _post(
        f"/models/{_segment(name)}/fetch", FetchStatus, FetchWanted(variant=variant, source=source)
    )


def fit_model(name: str, context_tokens: int, parallel_requests: int) -> Call[ModelFit]:
    """Ask where a model fits."""
    return _get(
        f"/models/{_segment(name)}/fit",
        ModelFit,
        context_tokens=context_tokens,
        parallel_requests=parallel_requests,
    )


def explain_price(name: str, tokens_input: int, tokens_output: int) -> Call[PriceExplained]:
    """Ask how a request would be priced."""
    return _get(
        f"/models/{_segment(name)}/price",
        PriceExplained,
        tokens_input=tokens_input,
        tokens_output=tokens_output,
    )


def accept_licence(project: str, model: str, licence: str) -> Call[LicenceAcceptance]:
    """Accept a model's licence; once is as good as twice."""
    wanted = LicenceWanted(model=model, licence=licence)
    return _post(f"/projects/{_project(project)}/licences", LicenceAcceptance, wanted)


def event_parameters(after: int, project: str, *, is_following: bool) -> Mapping[str, str]:
    """Return the parameters of the event stream."""
    found = {"after": str(after), "follow": "true" if is_following else "false"}
    return {**found, "project": project} if project else found


def _get(path: str, answer: type[T], /, **parameters: str | int | tuple[str, ...]) -> Call[T]:
    wanted = {name: value for name, value in parameters.items() if value not in ("", ())}
    return Call(method="GET", path=PREFIX + path, read=reading(answer), parameters=wanted)


def _post(path: str, kind: type[T], value: object, *, is_repeatable: bool = True) -> Call[T]:
    return Call(
        method="POST",
        path=PREFIX + path,
        read=reading(kind),
        body=b"" if value is None else body_of(value),
        is_repeatable=is_repeatable,
    )


def _segment(name: str) -> str:
    """Return a name as one segment of a path, whatever is in it."""
    if name in ("", ".", ".."):
        raise InvalidRequest(f"use {name!r} as a name: it names nothing")
    return quote(name, safe="")


def _project(name: str) -> str:
    if not name:
        raise InvalidRequest(
            "name the project: none is given", hint="pass project=…, or set MOULIN_PROJECT"
        )
    return _segment(name)
