"""Small true values for store tests, each made from a number."""

from moulin.domain.events import (
    EpochOpened,
    Event,
    FactoryApplied,
    ObjectChange,
    WorkloadFinished,
    WorkloadSubmitted,
)
from moulin.domain.factory import ObjectKind, Project, Site
from moulin.domain.ids import KeyId, OrganisationId, ProjectId, WorkloadId, attempt_id, make_id
from moulin.domain.principal import ApiKey, Role
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.usage import Charge, ChargeLine, Entry, Posting, Usage
from moulin.domain.views import (
    DeclaredView,
    IdempotencyRecord,
    NodeIntervalView,
    ReceiptView,
    TaskView,
    UnitView,
    WorkloadView,
)
from moulin.domain.wire import encode
from moulin.domain.workload import (
    Submission,
    TaskTemplate,
    WorkloadKind,
    WorkloadSpec,
    WorkloadState,
)
from moulin.ports.store import Batch, Checkpoint, Leaf, TreeNode

START_NS = 1_790_000_000_000_000_000
UNI = OrganisationId("uni")


def job_id(number: int) -> WorkloadId:
    return WorkloadId(make_id("job", START_NS + number * 1_000_000, number))


def spec(**changes: object) -> WorkloadSpec:
    values: dict = {
        "kind": WorkloadKind.JOB,
        "name": "train",
        "task": TaskTemplate(command=("sh", "-c", "echo é"), env={"A": "b"}),
        "labels": {"team": "a"},
    }
    return WorkloadSpec(**(values | changes))


def workload(number: int, **changes: object) -> WorkloadView:
    values: dict = {
        "id": job_id(number),
        "kind": "job",
        "name": "train",
        "organisation": "uni",
        "project": "lab",
        "state": "running",
        "spec": spec(),
        "submitted_by": "key_1",
        "submitted_at_ns": START_NS + number,
        "reasons": (Reason(code=ReasonCode.BEHIND_OTHERS, parameters={"count": "3"}),),
        "units": (
            UnitView(
                unit=0,
                generation=1,
                state="running",
                tasks=(TaskView(rank=0, step="s", node="n1", zone="z", devices=(0, 1)),),
            ),
        ),
        "reserved_neur": 2**70,
    }
    return WorkloadView(**(values | changes))


def submitted(sequence: int, epoch: int, number: int, project: str = "lab") -> Event:
    payload = WorkloadSubmitted(
        submission=Submission(
            id=job_id(number),
            organisation=UNI,
            project=ProjectId(project),
            spec=spec(),
            submitted_by="key_1",
            submitted_at_ns=START_NS + number,
        ),
        reserved_neur=2**65,
        policy_decision="allow",
    )
    return Event(
        sequence=sequence,
        epoch=epoch,
        at_ns=START_NS + sequence,
        actor="key_1",
        payload=payload,
        organisation="uni",
        project=project,
        labels={"origin": "test"},
    )


def finished(sequence: int, epoch: int, number: int) -> Event:
    return Event(
        sequence=sequence,
        epoch=epoch,
        at_ns=START_NS + sequence,
        actor="controlplane",
        payload=WorkloadFinished(workload=job_id(number), state=WorkloadState.SUCCEEDED),
        organisation="uni",
        project="lab",
        causation=sequence - 1,
    )


def opened(sequence: int, epoch: int) -> Event:
    return Event(
        sequence=sequence,
        epoch=epoch,
        at_ns=START_NS + sequence,
        actor="controlplane",
        payload=EpochOpened(epoch=epoch, boot_id="b", version="0"),
    )


def applied(sequence: int, epoch: int) -> Event:
    changes = (
        ObjectChange(kind=ObjectKind.SITE, name="s", value=Site(name="s", country="FR")),
        ObjectChange(
            kind=ObjectKind.PROJECT,
            name="lab",
            value=Project(name="lab", organisation="uni", budget_neur=2**80),
        ),
        ObjectChange(kind=ObjectKind.ZONE, name="old"),
    )
    return Event(
        sequence=sequence,
        epoch=epoch,
        at_ns=START_NS + sequence,
        actor="key_1",
        payload=FactoryApplied(managed_by="factory.yaml", changes=changes),
    )


def log(epoch: int, first: int, count: int) -> tuple[Event, ...]:
    return tuple(submitted(sequence, epoch, sequence) for sequence in range(first, first + count))


def receipt(number: int, **changes: object) -> ReceiptView:
    usage = Usage(
        id=f"use_{number}",
        workload=WorkloadId(str(changes.pop("workload", job_id(number)))),
        attempt=attempt_id(job_id(number), 0, 1),
        organisation=UNI,
        project=ProjectId("lab"),
        zone="z",
        site="s",
        country="FR",
        country_basis="asserted by the operator",
        start_ns=START_NS,
        end_ns=START_NS + 5,
        quantities={"cpu_milli_ms": 2**60, "tokens_input": 7},
        energy_mj=2**66,
    )
    line = ChargeLine(
        sku="cpu", meter="cpu_milli_ms", quantity=5, unit_price_neur=3, per=1, amount_neur=15
    )
    charge = Charge(
        usage=usage.id, price_book="p", lines=(line,), amount_neur=15, operator_cost_neur=1
    )
    values: dict = {
        "id": f"rct_{number}",
        "organisation": "uni",
        "project": "lab",
        "usage": usage,
        "charge": charge,
        "origin": "factory/1",
        "leaf_index": number,
        "issued_at_ns": START_NS,
        "salt_hex": "00ff",
    }
    return ReceiptView(**(values | changes))


def entry(number: int, amount_neur: int, project: str = "lab") -> Entry:
    return Entry(
        id=f"ent_{number}",
        at_ns=START_NS + number,
        organisation=UNI,
        project=ProjectId(project),
        cause=f"use_{number}",
        postings=(
            Posting(account="tenant:receivable", debit_neur=amount_neur),
            Posting(account="operator:revenue", credit_neur=amount_neur),
        ),
        labels={"kind": "usage"},
    )


def leaf(index: int, origin: str = "factory/1") -> Leaf:
    return Leaf(origin=origin, index=index, leaf_hash=index.to_bytes(32, "big"))


def tree_node(level: int, index: int, origin: str = "factory/1") -> TreeNode:
    digest = (level * 1000 + index).to_bytes(32, "big")
    return TreeNode(origin=origin, level=level, index=index, node_hash=digest)


def checkpoint(tree_size: int, origin: str = "factory/1") -> Checkpoint:
    note = f"note {tree_size}\n"
    return Checkpoint(origin=origin, tree_size=tree_size, note=note, at_ns=tree_size)


def api_key(name: str, project: str = "lab") -> ApiKey:
    return ApiKey(
        id=KeyId(name),
        name=name,
        role=Role.MEMBER,
        organisation=UNI,
        project=ProjectId(project),
        digest="d" * 64,
        models=("m",),
        created_at_ns=START_NS,
    )


def declared(name: str, sequence: int = 1) -> DeclaredView:
    site = Site(name=name, country="FR", owners={"uni": 1_000_000})
    return DeclaredView(
        kind="site",
        name=name,
        organisation="uni",
        managed_by="factory.yaml",
        body=encode(site),
        sequence=sequence,
    )


def interval(node: str, minute: int, **changes: object) -> NodeIntervalView:
    start_ns = START_NS + minute * 60_000_000_000
    values: dict = {
        "node": node,
        "zone": "z",
        "site": "s",
        "start_ns": start_ns,
        "end_ns": start_ns + 60_000_000_000,
        "energy_mj": 2**70,
        "allocated_mj": 2**69,
        "idle_mj": 2**69,
        "unattributed_mj": 0,
        "overhead_mj": 3,
        "method": "model",
        "quality": "D",
        "uncertainty_ppm": 300_000,
    }
    return NodeIntervalView(**(values | changes))


def record(key: str, status: int = 201) -> IdempotencyRecord:
    return IdempotencyRecord(
        project="lab",
        key=key,
        body_hash="h",
        status=status,
        body='{"id":"é"}',
        created_at_ns=START_NS,
        organisation="uni",
    )


def job_batch(epoch: int, first: int, jobs: int) -> Batch:
    """Return the batch of `jobs` finished jobs: for each an event, row, receipt, entry and leaf."""
    numbers = range(first, first + jobs)
    return Batch(
        epoch=epoch,
        events=log(epoch, first, jobs),
        workloads=tuple(workload(number) for number in numbers),
        receipts=tuple(receipt(number) for number in numbers),
        entries=tuple(entry(number, number) for number in numbers),
        leaves=tuple(leaf(number - 1) for number in numbers),
    )
