"""A factory behind a real API server, answered by a small stand-in for the control plane.

The stand-in takes calls from the real inbox in a thread and commits to the real in-memory store;
two projects of two organisations own one workload and one receipt each.
"""

import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from moulin.api import ApiServer, ApiServices, create_app
from moulin.api.services import ApiLimits
from moulin.controlplane import commands as c
from moulin.controlplane.inbox import Call, Inbox
from moulin.controlplane.keys import changed_key
from moulin.domain.control import AllowancePage
from moulin.domain.errors import BudgetExceeded, IdempotencyMismatch, NotFound
from moulin.domain.events import (
    Event,
    FactoryApplied,
    KeyCreated,
    KeyRevoked,
    KeyUpdated,
    Payload,
    WorkloadStopRequested,
    WorkloadSubmitted,
)
from moulin.domain.factory import Project, kind_of
from moulin.domain.ids import KeyId, OrganisationId, ProjectId, WorkloadId, make_id
from moulin.domain.limits import AllowanceUnit, LimitScope, Period, allowance_name
from moulin.domain.observation import LogChunk
from moulin.domain.principal import ApiKey, Role
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.secrets import SecretInfo
from moulin.domain.snapshot import GatewaySnapshot, Grant, SyncReply
from moulin.domain.terms import LicenceAcceptance
from moulin.domain.usage import Charge, Usage
from moulin.domain.views import (
    BalanceView,
    DeclaredView,
    IdempotencyRecord,
    NodeView,
    ReceiptView,
    TaskView,
    UnitView,
    WorkloadView,
)
from moulin.domain.wire import encode
from moulin.domain.workload import Submission, TaskTemplate, WorkloadKind, WorkloadSpec
from moulin.identity import Keyring, digest, fold_keyring, make_key
from moulin.ledger.allowances import Spending, view_of
from moulin.ports.store import Batch, Checkpoint
from moulin.store.memory import MemoryStore
from tests.integration.api import batch_world, lease_world, sessions_world
from tests.integration.api.models_world import Shelf
from tests.integration.api.objects_world import Desk, Keeping, Keepsakes, keep
from tests.integration.api.registrations_world import believing
from tests.integration.api.secrets_world import Sealing, kept

PEPPER = b"pepper of a test"
ORGANISATION = {"alpha": "acme", "beta": "biota"}
START_NS = 1_790_000_000_000_000_000


class WallClock:
    def now_ns(self) -> int:
        return time.time_ns()


class Dice:
    def entropy(self) -> int:
        return secrets.randbits(80)


def job_spec(name: str = "train", **changes: Any) -> WorkloadSpec:
    values: dict[str, Any] = {
        "kind": WorkloadKind.JOB,
        "name": name,
        "task": TaskTemplate(command=("true",)),
    }
    return WorkloadSpec(**(values | changes))


@dataclass
class StandIn:
    """Answers commands as the control plane's contract says, with as little thought as possible."""

    store: MemoryStore = field(default_factory=MemoryStore)
    inbox: Inbox = field(default_factory=Inbox)
    keyring: Keyring = field(default_factory=Keyring)
    submitted: list[c.SubmitWorkload] = field(default_factory=list)
    syncs: list[c.SyncGateway] = field(default_factory=list)
    actors: list[str] = field(default_factory=list)
    snapshot_version: int = 1
    licences: dict[tuple[str, str], LicenceAcceptance] = field(default_factory=dict)
    is_stopping: bool = False
    writing: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.epoch = self.store.open_epoch()
        self.keeping = Keeping(self.actors)
        self.sealing = Sealing()

    def run(self) -> None:
        while not self.is_stopping:
            for call in self.inbox.take(0.05, 100):
                self._answer(call)

    def record(self, payload: Payload, project: str = "", actor: str = "test", **rows: Any) -> None:
        with self.writing:
            event = Event(
                sequence=self.store.last_sequence() + 1,
                epoch=self.epoch,
                at_ns=START_NS + self.store.last_sequence(),
                actor=actor,
                payload=payload,
                project=project,
                organisation=ORGANISATION.get(project, ""),
            )
            self.store.commit(Batch(epoch=self.epoch, events=(event,), **rows))
            fold_keyring(self.keyring, event)
            self.actors.append(actor)

    def _answer(self, call: Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            call.future.set_result(self._HANDLERS[type(call.command)](self, call.command))
        except Exception as error:  # noqa: BLE001 - the caller gets whatever it is
            call.future.set_exception(error)

    def _submit(self, command: c.SubmitWorkload) -> WorkloadView:
        self.submitted.append(command)
        repeated = command.idempotency
        known = self.store.idempotency(command.project, repeated.key) if repeated else None
        if known and repeated:
            if known.body_hash != repeated.body_hash:
                raise IdempotencyMismatch("submit: the key was used with another body")
            found = self.store.workload(known.body)
            assert found
            return found
        if command.project not in ORGANISATION:
            raise NotFound(f"submit to {command.project}: there is no such project")
        if command.spec.labels.get("test") == "poor":
            raise BudgetExceeded("submit: no money", hint="earn some", details={"left_eur": "0"})
        view = workload_view(command.id, command.project, command.spec)
        submission = Submission(
            id=command.id,
            organisation=OrganisationId(view.organisation),
            project=command.project,
            spec=command.spec,
            submitted_by=command.principal.name,
            submitted_at_ns=view.submitted_at_ns,
        )
        records: tuple[IdempotencyRecord, ...] = ()
        if repeated:
            records = (
                IdempotencyRecord(
                    project=command.project,
                    key=repeated.key,
                    body_hash=repeated.body_hash,
                    status=201,
                    body=view.id,
                    created_at_ns=1,
                ),
            )
        self.record(
            WorkloadSubmitted(submission=submission, reserved_neur=7, policy_decision="d"),
            command.project,
            command.principal.key,
            workloads=(view,),
            idempotency=records,
        )
        return view

    def _try(self, command: c.TryWorkload) -> c.Trial:
        return c.Trial(is_possible=True, nodes=("n0",), zones=("z",), reserved_neur=2**60)

    def _stop(self, command: c.StopWorkload) -> WorkloadView:
        view = self.store.workload(command.workload)
        assert view
        ended = replace(view, state="cancelled", ended_at_ns=START_NS + 5)
        self.record(
            WorkloadStopRequested(workload=command.workload, by=command.principal.name),
            view.project,
            command.principal.key,
            workloads=(ended,),
        )
        return ended

    def _explain(self, command: c.ExplainWorkload) -> c.Explanation:
        view = self.store.workload(command.workload)
        assert view
        reason = Reason(code=ReasonCode.BEHIND_OTHERS, parameters={"count": "3"})
        return c.Explanation(workload=view, reasons=(reason,))

    def _apply(self, command: c.ApplyFactory) -> c.Applied:
        diffs = tuple(
            c.ObjectDiff(action="create", kind=kind_of(each), name=each.name, after=encode(each))
            for each in command.objects
        )
        if not command.is_dry_run:
            applied = FactoryApplied(managed_by=command.managed_by, changes=())
            self.record(applied, actor=command.principal.key)
        return c.Applied(
            diffs=diffs, is_dry_run=command.is_dry_run, sequence=self.store.last_sequence()
        )

    def _create_key(self, command: c.CreateKey) -> ApiKey:
        key = command.key
        if key.project not in ORGANISATION:
            raise NotFound("create a key: there is no such project")
        self.record(KeyCreated(key=key), key.project, command.principal.key, keys=(key,))
        return key

    def _revoke_key(self, command: c.RevokeKey) -> ApiKey:
        project = self.keyring.by_id[command.key].project
        self.record(KeyRevoked(key=command.key), project, command.principal.key)
        return self.keyring.by_id[command.key]

    def _update_key(self, command: c.UpdateKey) -> ApiKey:
        found = self.keyring.by_id[command.key]
        changed = KeyUpdated(key=changed_key(found, command.change))
        self.record(changed, found.project, command.principal.key, keys=(changed.key,))
        return self.keyring.by_id[command.key]

    def _rotate_key(self, command: c.RotateKey) -> ApiKey:
        old = self.keyring.by_id[command.key]
        new = replace(old, id=command.id, digest=command.digest, origin=old.line)
        self.record(KeyCreated(key=new), old.project, command.principal.key, keys=(new,))
        return new

    def _allowances(self, command: c.ReadAllowances) -> AllowancePage:
        spending = Spending(limit=2**60, period=Period.MONTH, used=1)
        name = allowance_name(LimitScope.PROJECT, command.project, AllowanceUnit.EUR)
        return AllowancePage(items=(view_of(name, spending, START_NS),))

    def _accept(self, command: c.AcceptLicence) -> LicenceAcceptance:
        found = LicenceAcceptance(
            licence=command.licence,
            organisation=ORGANISATION[command.project],
            by=command.principal.name,
            at_ns=START_NS,
        )
        self.licences[found.organisation, found.licence] = found
        self.actors.append(command.principal.key)
        return found

    def _object(self, command: Any) -> Any:
        return self.keeping.answer(command)

    def _secret(self, command: Any) -> SecretInfo:
        self.actors.append(command.principal.key)
        return self.sealing.answer(command)

    def _sync(self, command: c.SyncGateway) -> SyncReply:
        self.syncs.append(command)
        wanted = command.request
        last = max((record.sequence for record in wanted.records), default=0)
        is_new = wanted.snapshot_version < self.snapshot_version
        snapshot = GatewaySnapshot(
            version=self.snapshot_version, issued_at_ns=START_NS, staleness_max_s=60
        )
        return SyncReply(
            acknowledged_sequence=last,
            now_ns=START_NS,
            snapshot=snapshot if is_new else None,
            grants=tuple(Grant(project=w.project, amount_neur=w.amount_neur) for w in wanted.wants),
        )

    def _status(self, command: c.ReadStatus) -> c.FactoryStatus:
        zone = c.ZoneStatus(
            name="z",
            site="s",
            country="FR",
            country_basis="asserted by the operator",
            state="open",
            nodes=1,
            power_held_w=1,
            power_envelope_w=2,
        )
        node = NodeView(
            node="n0",
            pool="p",
            zone="z",
            engine="local",
            machine_class="cpu",
            cpu_milli=2000,
            cpu_milli_held=0,
            memory_bytes=2**34,
            memory_bytes_held=0,
        )
        return c.FactoryStatus(
            version="9.9",
            epoch=self.epoch,
            sequence=self.store.last_sequence(),
            now_ns=START_NS,
            zones=(zone,),
            nodes=(node,),
            balances=tuple(balance(project) for project in ORGANISATION),
            counts={"running": 2},
        )

    _HANDLERS: Any = field(
        init=False,
        default_factory=lambda: {
            c.SubmitWorkload: StandIn._submit,
            c.TryWorkload: StandIn._try,
            c.StopWorkload: StandIn._stop,
            **batch_world.HANDLERS,
            **lease_world.HANDLERS,
            **sessions_world.HANDLERS,
            c.ExplainWorkload: StandIn._explain,
            c.ApplyFactory: StandIn._apply,
            c.CreateKey: StandIn._create_key,
            c.RevokeKey: StandIn._revoke_key,
            c.UpdateKey: StandIn._update_key,
            c.RotateKey: StandIn._rotate_key,
            c.ReadAllowances: StandIn._allowances,
            c.AcceptLicence: StandIn._accept,
            c.SyncGateway: StandIn._sync,
            c.StoreObject: StandIn._object,
            c.DeleteObject: StandIn._object,
            c.OpenBatch: StandIn._object,
            c.CancelBatch: StandIn._object,
            c.SetSecret: StandIn._secret,
            c.DeleteSecret: StandIn._secret,
            c.ReadStatus: StandIn._status,
        },
    )


class Proofs:
    def origin(self) -> str:
        return "factory/receipts"

    def public_key(self) -> bytes:
        return b"factory+key"

    def receipt_file(self, receipt: str) -> bytes:
        return f"file of {receipt}".encode()


def read_logs(workload: str, unit: int, rank: int, cursor: int, limit: int) -> LogChunk:
    if unit or rank:
        raise NotFound(f"read the log of {workload}: no such task")
    text = b"hello \xff world\n"
    return LogChunk(
        data=text[cursor : cursor + limit],
        next_cursor=min(len(text), cursor + limit),
        is_end=cursor + limit >= len(text),
    )


def workload_view(id: str, project: str, spec: WorkloadSpec) -> WorkloadView:
    task = TaskView(rank=0, step=f"{id}.u0.g1.t0", node="n0", zone="z", phase="running")
    return WorkloadView(
        id=id,
        kind=spec.kind.value,
        name=spec.name,
        organisation=ORGANISATION[project],
        project=project,
        state="running",
        spec=spec,
        submitted_by="somebody",
        submitted_at_ns=START_NS,
        units=(UnitView(unit=0, generation=1, state="running", tasks=(task,)),),
        reserved_neur=2**60,
    )


def balance(project: str) -> BalanceView:
    return BalanceView(
        project=project,
        organisation=ORGANISATION[project],
        budget_neur=-1,
        spent_neur=2**70,
        reserved_neur=0,
        granted_neur=0,
    )


def receipt_view(id: str, project: str, workload: str, tokens: int) -> ReceiptView:
    values: dict[str, Any] = {
        "id": f"{id}.usage",
        "workload": workload,
        "attempt": f"{workload}.u0.g1",
        "organisation": ORGANISATION[project],
        "project": project,
        "zone": "z",
        "site": "s",
        "country": "FR",
        "country_basis": "asserted by the operator",
        "start_ns": START_NS,
        "end_ns": START_NS + 10,
        "quantities": {"tokens_output": tokens},
        "energy_mj": 2**65,
    }
    usage = Usage(key="key_of_a_call", **values)
    charge = Charge(
        usage=usage.id, price_book="b", lines=(), amount_neur=2**64, operator_cost_neur=1
    )
    return ReceiptView(
        id=id,
        organisation=ORGANISATION[project],
        project=project,
        usage=usage,
        charge=charge,
        origin="factory/receipts",
        leaf_index=0,
        issued_at_ns=START_NS,
    )


@dataclass
class World:
    """Addresses, keys and owned objects of a running API."""

    url: str
    standin: StandIn
    app: Any
    server: ApiServer
    shelf: Shelf
    secrets: dict[tuple[str, str], str] = field(default_factory=dict)
    workloads: dict[str, str] = field(default_factory=dict)
    receipts: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    objects: dict[str, dict[str, str]] = field(default_factory=dict)

    def secret(self, role: Role, project: str = "alpha") -> str:
        return self.secrets[role.value, "" if role in (Role.OPERATOR, Role.GATEWAY) else project]

    def client(self, role: Role = Role.ADMIN, project: str = "alpha") -> httpx.Client:
        bearer = {"authorization": f"Bearer {self.secret(role, project)}"}
        return httpx.Client(base_url=self.url, headers=bearer, timeout=20, trust_env=False)

    def issue(self, role: Role, project: str, **changes: Any) -> str:
        """Record a key and return its secret."""
        secret = make_key(secrets.token_bytes(20))
        factory_role = role in (Role.OPERATOR, Role.GATEWAY)
        key = ApiKey(
            id=KeyId(make_id("key", START_NS, secrets.randbits(80))),
            name=f"{role.value} of {project}",
            role=role,
            organisation=OrganisationId("" if factory_role else ORGANISATION[project]),
            project=ProjectId("" if factory_role else project),
            digest=digest(PEPPER, secret),
            **changes,
        )
        self.standin.record(KeyCreated(key=key), key.project, keys=(key,))
        self.secrets.setdefault((role.value, key.project), secret)
        self.keys[key.project] = key.id
        return secret


@contextmanager
def running_world(
    limits: ApiLimits | None = None, standin_factory: Callable[[], StandIn] = StandIn
) -> Iterator[World]:
    """Serve a factory on a free port of loopback until the block ends."""
    standin = standin_factory()
    shelf = Shelf()
    place = tempfile.TemporaryDirectory()
    folder = Keepsakes(Path(place.name))
    services = ApiServices(
        call=standin.inbox.call,
        store=standin.store,
        keyring=lambda: standin.keyring,
        objects=lambda: standin.keeping.shelf,
        contents=folder,
        desk=Desk(),
        registrations=believing(WallClock(), PEPPER),
        vault=standin.sealing,
        secrets=lambda: standin.sealing.book,
        licences=lambda: standin.licences,
        logs=read_logs,
        enter=sessions_world.let_in,
        shelf=shelf,
        evidence=Proofs(),
        clock=WallClock(),
        ids=Dice(),
        pepper=PEPPER,
        version="9.9",
        limits=limits or ApiLimits(heartbeat_s=0.3, news_period_s=0.02, gateways_wait_s=0.1),
    )
    app = create_app(services)
    bound = socket.create_server(("127.0.0.1", 0))
    server = ApiServer(app, [bound])
    threads = [threading.Thread(target=work) for work in (standin.run, server.run)]
    for thread in threads:
        thread.start()
    try:
        while not server.is_started:
            time.sleep(0.005)
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        world = World(url=url, standin=standin, app=app, server=server, shelf=shelf)
        populate(world)
        for project, organisation in ORGANISATION.items():
            world.objects[project] = keep(standin.keeping, folder, project, organisation)
            world.objects[project]["name"] = "TOKEN"
            standin.sealing.book.by_name[project, "TOKEN"] = kept(
                project, organisation, "TOKEN", b"sealed"
            )
            leased = lease_world.lease_row(project, organisation, len(project))
            world.objects[project]["lease"] = leased.id
            standin.record(KeyRevoked(key="none"), project, workloads=(leased,))
        yield world
    finally:
        place.cleanup()
        server.stop()
        standin.is_stopping = True
        standin.inbox.close()
        for thread in threads:
            thread.join(timeout=20)
        bound.close()
        assert not any(thread.is_alive() for thread in threads)


def populate(world: World) -> None:
    """Give each project every role's key, a workload, a receipt and a declared object."""
    for number, project in enumerate(ORGANISATION):
        for role in Role:
            world.issue(role, project)
        world.issue(Role.VIEWER, project)  # the one that tests may revoke
        drawn = make_id("job", START_NS, number)
        spec = job_spec()
        view = workload_view(drawn, project, spec)
        receipt = receipt_view(make_id("rcp", START_NS, number), project, drawn, 10 + number)
        world.workloads[project], world.receipts[project] = drawn, receipt.id
        declared = DeclaredView(
            kind="project",
            name=project,
            organisation=ORGANISATION[project],
            managed_by="f",
            body=encode(Project(name=project, organisation=ORGANISATION[project])),
            sequence=1,
        )
        submission = Submission(
            id=WorkloadId(drawn),
            organisation=OrganisationId(ORGANISATION[project]),
            project=ProjectId(project),
            spec=spec,
            submitted_by="somebody",
            submitted_at_ns=START_NS,
        )
        world.standin.record(
            WorkloadSubmitted(submission=submission, reserved_neur=1, policy_decision="d"),
            project,
            workloads=(view,),
            receipts=(receipt,),
            declared=(declared,),
            checkpoints=(
                Checkpoint(origin="factory/receipts", tree_size=number + 1, note="n", at_ns=1),
            ),
        )
