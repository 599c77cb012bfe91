"""The client for plain code: each method is one request, or a script of several."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx

from moulin.domain.control import (
    AdjustWanted,
    AllowancePage,
    Applied,
    CheckpointInfo,
    ElementPage,
    Explanation,
    FactoryPage,
    FactoryStatus,
    FetchStatus,
    IntervalPage,
    KeyChange,
    KeyInfo,
    KeyIssued,
    KeyPage,
    KeyRotation,
    KeyWanted,
    ModelInfo,
    ModelPage,
    NodePage,
    ReceiptPage,
    RolloutWanted,
    SpendReport,
    Stopped,
    StopWanted,
    Trial,
    UsageReport,
    WebhookInfo,
    WorkloadPage,
)
from moulin.domain.errors import MoulinError
from moulin.domain.events import Event
from moulin.domain.factory import DeclaredObject
from moulin.domain.observation import LogChunk
from moulin.domain.outlook import ModelFit, PriceExplained
from moulin.domain.registration import RegistrationPage
from moulin.domain.terms import LicenceAcceptance
from moulin.domain.views import NodeView, ReceiptView, WorkloadView
from moulin.domain.workload import (
    EndpointSpec,
    Resources,
    Scaling,
    Where,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.sdk import _requests as requests
from moulin.sdk import _scripts as scripts
from moulin.sdk._closing import Closing
from moulin.sdk._core import (
    PREFIX,
    Answer,
    Call,
    error_of,
    finish,
    wait_before_repeat,
)
from moulin.sdk._inside import Inside
from moulin.sdk._jobdata import Bundles, Secrets, tried
from moulin.sdk._kept import Aliases, Batches, Files
from moulin.sdk._leases import Leases
from moulin.sdk._stream import EventReader
from moulin.sdk._transport import (
    STREAM_TIMEOUT,
    arguments,
    content,
    failure_of,
    headers_of,
    query,
    wait_after,
)
from moulin.sdk.credentials import Credentials, find_credentials

T = TypeVar("T")


class Moulin(Closing):
    """A connection to a control plane; safe to share between threads; close it or use `with`.

    Without arguments the environment and the credentials file say where and who. `ca` is a PEM file
    of the certificates to trust, for a control plane whose certificate the system does not know.
    Every method raises the errors of `moulin.domain.errors`.
    """

    def __init__(
        self,
        *,
        control_url: str = "",
        api_key: str = "",
        project: str = "",
        ca: str | Path = "",
        credentials: Credentials | str | Path = "",
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.credentials = (
            credentials
            if isinstance(credentials, Credentials)
            else find_credentials(
                control_url=control_url,
                api_key=api_key,
                project=project,
                ca=ca,
                file=credentials,
            )
        )
        self._client = httpx.Client(transport=transport, **arguments(self.credentials))
        self.workloads = Workloads(self)
        self.endpoints = Endpoints(self)
        self.models = Models(self)
        self.keys = Keys(self)
        self.factory = Factory(self)
        self.receipts = Receipts(self)
        self.files = Files(self)
        self.batches = Batches(self)
        self.aliases = Aliases(self)
        self.leases = Leases(self)
        self.secrets = Secrets(self)
        self.bundles = Bundles(self)
        self.inside = Inside(self.credentials)

    def status(self) -> FactoryStatus:
        """Return the factory at a glance."""
        return self.send(requests.status())

    def spend(self, by: str = "key", project: str = "") -> SpendReport:
        """Return exact sums by `key`, `model`, `user` or `label`, of one project or of all you may see."""
        return self.send(requests.spend(by, project))

    def usage(self, project: str = "") -> UsageReport:
        """Return exact sums per workload, of one project or of all you may see."""
        return self.send(requests.usage(project))

    def events(
        self, *, after: int = 0, project: str = "", is_following: bool = True
    ) -> Iterator[Event]:
        """Yield events of the log after a sequence, in order; reconnects without a gap.

        Goes on for ever while `is_following`, else ends at the log's present end.
        """
        reader = EventReader(after)
        attempt = 0
        while True:
            seen = reader.after
            try:
                yield from self._read_stream(reader, project, is_following=is_following)
            except httpx.TransportError as error:
                attempt = 1 if reader.after > seen else attempt + 1
                wait_s = wait_after(requests.status(), attempt, error)
                if wait_s is None:
                    raise self._unreachable(error) from error
                time.sleep(wait_s)
            else:
                if not is_following:
                    return

    def send(self, call: Call[T]) -> T:
        """Send one request, again where that is safe and can help, and return its answer."""
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = self._send_once(call)
            except httpx.TransportError as error:
                wait_s = wait_after(call, attempt, error)
                if wait_s is None:
                    raise self._unreachable(error) from error
            else:
                wait_s = wait_before_repeat(call, attempt, answer)
                if wait_s is None:
                    return finish(call, answer)
            time.sleep(wait_s)

    def pieces(self, call: Call[bytes]) -> Iterator[bytes]:
        """Send one request and yield the bytes of its answer as they come."""
        try:
            with self._client.stream(call.method, call.path, params=query(call)) as found:
                if found.status_code != 200:
                    body = found.read()
                    status, headers = found.status_code, found.headers
                    raise error_of(Answer(status=status, headers=headers, body=body))
                yield from found.iter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def run(self, script: scripts.Script) -> Iterator[Any]:
        """Run a script of requests and yield what it gives."""
        result: object = None
        error: MoulinError | None = None
        while True:
            try:
                step = script.send(result) if error is None else script.throw(error)
            except StopIteration:
                return
            result, error = None, None
            if isinstance(step, Call):
                try:
                    result = self.send(step)
                except MoulinError as raised:
                    error = raised
            elif isinstance(step, scripts.Pause):
                time.sleep(step.wait_s)
            else:
                yield step.value

    def run_whole(self, script: scripts.Script) -> Any:
        """Run a script to its end and return the last thing it gave."""
        given: Any = None
        for each in self.run(script):
            given = each
        return given

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send_once(self, call: Call[Any]) -> Answer:
        found = self._client.request(
            call.method,
            call.path,
            params=query(call),
            headers=headers_of(call),
            **content(call),
        )
        return Answer(status=found.status_code, headers=found.headers, body=found.content)

    def _read_stream(
        self, reader: EventReader, project: str, *, is_following: bool
    ) -> Iterator[Event]:
        parameters = requests.event_parameters(reader.after, project, is_following=is_following)
        with self._client.stream(
            "GET", f"{PREFIX}/events", params=parameters, timeout=STREAM_TIMEOUT
        ) as found:
            if found.status_code != 200:
                body = found.read()
                raise error_of(Answer(status=found.status_code, headers=found.headers, body=body))
            for line in found.iter_lines():
                yield from reader.feed(line)

    def _unreachable(self, error: httpx.TransportError) -> MoulinError:
        return failure_of(error, self.credentials.control_url)


class _Resource:
    def __init__(self, client: Moulin) -> None:
        self._client = client

    def _project(self, project: str) -> str:
        return project or self._client.credentials.project


class Workloads(_Resource):
    """Jobs, endpoints, leases and sessions."""

    def submit(
        self, spec: WorkloadSpec, *, project: str = "", idempotency_key: str = ""
    ) -> WorkloadView:
        """Submit a workload; durable when this returns, once however often it is sent.

        A `workdir` that is not absolute is a folder here, and sent along.
        """
        project = self._project(project)
        spec = self._client.bundles.synced(spec, project)
        return self._client.send(requests.submit(project, spec, idempotency_key))

    def try_out(self, spec: WorkloadSpec, *, project: str = "") -> Trial:
        """Return where and when it would start, and what it would cost."""
        return self._client.send(requests.try_out(self._project(project), tried(spec)))

    def get(self, id: str) -> WorkloadView:
        """Return one workload."""
        return self._client.send(requests.workload(id))

    def page(
        self,
        *,
        project: str = "",
        kind: str = "",
        states: Sequence[str] = (),
        label: tuple[str, str] | None = None,
        cursor: str = "",
        limit: int = 100,
    ) -> WorkloadPage:
        """Return one page, newest first; its `next` is the cursor of the following one."""
        return self._client.send(requests.workloads(project, kind, states, label, (cursor, limit)))

    def every(
        self, *, project: str = "", kind: str = "", states: Sequence[str] = (), limit: int = 0
    ) -> Iterator[WorkloadView]:
        """Yield workloads, newest first, reading pages as needed; `limit` 0 means all."""
        yield from self._client.run(scripts.every_workload(project, kind, tuple(states), limit))

    def stop(self, id: str) -> WorkloadView:
        """Ask for the end of a workload."""
        return self._client.send(requests.stop(id))

    def stop_many(self, wanted: StopWanted, *, project: str = "") -> Stopped:
        """Ask for the end of all that fits, or with `is_dry_run` return what would."""
        return self._client.send(requests.stop_many(self._project(project), wanted))

    def stop_elements(self, id: str, indices: Sequence[int]) -> WorkloadView:
        """Ask for the end of some elements of an array."""
        return self._client.send(requests.stop_elements(id, indices))

    def elements(
        self, id: str, *, indices: Sequence[int] = (), states: Sequence[str] = ()
    ) -> ElementPage:
        """Return elements of an array: all, or those of some indices or states."""
        return self._client.send(requests.elements(id, indices, states))

    def hold(self, id: str) -> WorkloadView:
        """Let nothing more of it start until it is released; what runs goes on."""
        return self._client.send(requests.adjust(id, AdjustWanted(is_held=True)))

    def release(self, id: str) -> WorkloadView:
        """Let it go on."""
        return self._client.send(requests.adjust(id, AdjustWanted(is_held=False)))

    def set_priority(self, id: str, priority: int) -> WorkloadView:
        """Give it another priority, 0 to 100, higher first."""
        return self._client.send(requests.adjust(id, AdjustWanted(priority=priority)))

    def why(self, id: str) -> Explanation:
        """Return why it does not run, or not more of it."""
        return self._client.send(requests.why(id))

    def logs(
        self, id: str, *, unit: int = 0, rank: int = 0, cursor: int = 0, limit: int = 65536
    ) -> LogChunk:
        """Return output of one task from byte `cursor`."""
        return self._client.send(requests.logs(id, unit, rank, cursor, limit))

    def follow(self, id: str, *, unit: int = 0, rank: int = 0) -> Iterator[bytes]:
        """Yield output of one task as it comes, until it ends."""
        yield from self._client.run(scripts.follow_logs(id, unit, rank))

    def wait(self, id: str, *, timeout_s: float = 0.0) -> WorkloadView:
        """Return the workload once its state is final; 0 waits for ever."""
        found = self._client.run_whole(scripts.wait_for_end(id, timeout_s))
        return cast("WorkloadView", found)


class Endpoints(_Resource):
    """Models behind an address."""

    def deploy(
        self,
        name: str,
        endpoint: EndpointSpec,
        *,
        resources: Resources | None = None,
        where: Where | None = None,
        time_limit_s: int = 0,
        project: str = "",
        idempotency_key: str = "",
    ) -> WorkloadView:
        """Submit an endpoint that serves `endpoint.model`.

        With `time_limit_s` each replica runs so long at most, and another follows it.
        """
        spec = WorkloadSpec(
            kind=WorkloadKind.ENDPOINT,
            name=name,
            endpoint=endpoint,
            resources=resources or Resources(),
            where=where or Where(),
            time_limit_s=time_limit_s,
        )
        return self._client.workloads.submit(spec, project=project, idempotency_key=idempotency_key)

    def every(self, *, project: str = "", states: Sequence[str] = ()) -> Iterator[WorkloadView]:
        """Yield endpoints, newest first."""
        yield from self._client.workloads.every(
            project=project, kind=WorkloadKind.ENDPOINT.value, states=states
        )

    def scale(self, id: str, replicas: int, *, scaling: Scaling | None = None) -> WorkloadView:
        """Set the number of replicas; with `scaling`, let its load move it from here on."""
        return self._client.send(requests.scale(id, replicas, scaling))

    def rollout(self, id: str, wanted: RolloutWanted) -> WorkloadView:
        """Serve something else, or again what was served before, without a cut stream."""
        return self._client.send(requests.rollout(id, wanted))

    def wait(self, id: str, *, timeout_s: float = 0.0) -> WorkloadView:
        """Return the endpoint once a replica is ready or the endpoint has ended."""
        found = self._client.run_whole(scripts.wait_until_ready(id, timeout_s))
        return cast("WorkloadView", found)


class Models(_Resource):
    """The catalogue."""

    def list(self) -> ModelPage:
        """Return every entry with what is here of it."""
        return self._client.send(requests.models())

    def get(self, name: str) -> ModelInfo:
        """Return one entry."""
        return self._client.send(requests.model(name))

    def fit(self, name: str, *, context_tokens: int = 0, parallel_requests: int = 1) -> ModelFit:
        """Return where it fits; a context of 0 means 4096, or what the model has if that is less."""
        return self._client.send(requests.fit_model(name, context_tokens, parallel_requests))

    def price(
        self, name: str, *, tokens_input: int = 1000, tokens_output: int = 500
    ) -> PriceExplained:
        """Return how a request of that many tokens is priced now."""
        return self._client.send(requests.explain_price(name, tokens_input, tokens_output))

    def accept_licence(self, name: str, licence: str, *, project: str = "") -> LicenceAcceptance:
        """Accept its licence, by the id of its terms, for the project's organisation."""
        return self._client.send(requests.accept_licence(self._project(project), name, licence))

    def start_fetch(self, name: str, *, variant: str = "", source: str = "any") -> FetchStatus:
        """Start fetching unless it runs or is done."""
        return self._client.send(requests.fetch_model(name, variant, source))

    def fetch(
        self, name: str, *, variant: str = "", source: str = "any", timeout_s: float = 0.0
    ) -> Iterator[FetchStatus]:
        """Fetch and yield the progress; the last value is `ready`."""
        yield from self._client.run(scripts.fetch_model(name, variant, source, timeout_s))


class Keys(_Resource):
    """Keys of a project."""

    def create(self, wanted: KeyWanted, *, project: str = "") -> KeyIssued:
        """Issue a key; its secret is in the answer and nowhere else."""
        return self._client.send(requests.create_key(self._project(project), wanted))

    def list(self, *, project: str = "") -> KeyPage:
        """Return the keys, revoked ones too."""
        return self._client.send(requests.keys(self._project(project)))

    def get(self, id: str) -> KeyInfo:
        """Return one key."""
        return self._client.send(requests.key(id))

    def change(self, id: str, change: KeyChange) -> KeyInfo:
        """Restrict, limit or label a key, or let it expire; what is not given stays."""
        return self._client.send(requests.change_key(id, change))

    def rotate(self, id: str, *, old_until_ns: int = 0, expires_at_ns: int = 0) -> KeyIssued:
        """Issue a successor; the old key works until `old_until_ns`, 0 for no longer."""
        wanted = KeyRotation(old_until_at_ns=old_until_ns, expires_at_ns=expires_at_ns)
        return self._client.send(requests.rotate_key(id, wanted))

    def allowances(self, *, project: str = "", user: str = "") -> AllowancePage:
        """Return how the allowances stand that bind a project and its keys, or one user of them."""
        return self._client.send(requests.allowances(self._project(project), user))

    def webhook(self, *, project: str = "") -> WebhookInfo:
        """Return where a project's alerts go, with the secret their signatures are made with."""
        return self._client.send(requests.webhook(self._project(project)))

    def revoke(self, id: str) -> KeyInfo:
        """Stop a key from working."""
        return self._client.send(requests.revoke_key(id))


class Factory(_Resource):
    """What the operator declared, and the machines."""

    def get(self) -> FactoryPage:
        """Return the declared objects you may see."""
        return self._client.send(requests.factory())

    def apply(
        self, managed_by: str, objects: Sequence[DeclaredObject], *, is_dry_run: bool = False
    ) -> Applied:
        """Make the objects of one file true, or say what that would change."""
        return self._client.send(requests.apply(managed_by, objects, is_dry_run=is_dry_run))

    def nodes(self) -> NodePage:
        """Return the nodes with what is held on them."""
        return self._client.send(requests.nodes())

    def registrations(self) -> RegistrationPage:
        """Return the replicas that registered, and until when each is believed."""
        return self._client.send(requests.registrations())

    def quarantine(self, node: str, words: str = "") -> NodeView:
        """Place nothing more on a node until it is released; `words` say why."""
        return self._client.send(requests.judge_node(node, "quarantine", words))

    def release(self, node: str, words: str = "") -> NodeView:
        """Say that a node is well."""
        return self._client.send(requests.judge_node(node, "release", words))

    def check(self, node: str) -> NodeView:
        """Look at a node now and put on record whether it shows anything."""
        return self._client.send(requests.check_node(node))

    def intervals(self, *, node: str = "", start_ns: int = 0, limit: int = 1000) -> IntervalPage:
        """Return where each node's reading went."""
        return self._client.send(requests.intervals(node, start_ns, limit))


class Receipts(_Resource):
    """Receipts and what proves them."""

    def page(
        self, *, project: str = "", workload: str = "", cursor: str = "", limit: int = 100
    ) -> ReceiptPage:
        """Return one page in order of issue."""
        return self._client.send(requests.receipts(project, workload, cursor, limit))

    def get(self, id: str) -> ReceiptView:
        """Return one receipt."""
        return self._client.send(requests.receipt(id))

    def file(self, id: str) -> bytes:
        """Return the file that verifies offline."""
        return self._client.send(requests.receipt_file(id))

    def checkpoint(self, *, origin: str = "") -> CheckpointInfo:
        """Return the newest signed tree head."""
        return self._client.send(requests.checkpoint(origin))

    def public_key(self) -> bytes:
        """Return the key that verifies tree heads."""
        return self._client.send(requests.public_key())
