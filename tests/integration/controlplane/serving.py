"""A gateway as the control plane meets it: it keeps a journal, asks for escrow and serves nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from moulin.controlplane.commands import SyncGateway
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.principal import Principal, Role
from moulin.domain.snapshot import JournalKind, JournalRecord, SyncReply, SyncRequest, Want
from tests.integration.controlplane.bench import Bench

GATEWAY = Principal(
    key=KeyId("key_gateway"),
    name="gateway",
    role=Role.GATEWAY,
    organisation=OrganisationId(""),
    project=ProjectId(""),
)


@dataclass(slots=True)
class Gateway:
    """One gateway process; `records` is its whole journal, `acknowledged` what the leader has."""

    bench: Bench
    name: str = "gate"
    epoch: int = 100
    records: list[JournalRecord] = field(default_factory=list)
    acknowledged: int = 0
    snapshot_version: int = 0

    def sync(
        self,
        *,
        wants: Mapping[str, int] | None = None,
        returns: Mapping[str, int] | None = None,
        kept: Mapping[str, int] | None = None,
        is_complete: bool = False,
        records: tuple[JournalRecord, ...] | None = None,
        of: "Gateway | None" = None,
        is_telling: bool = True,
    ) -> SyncReply:
        """Exchange once; `of` is a predecessor whose journal is shipped first."""
        journal = of or self
        unsent = tuple(r for r in journal.records if r.sequence > journal.acknowledged)
        request = SyncRequest(
            gateway=self.name,
            epoch=self.epoch,
            records_epoch=journal.epoch,
            records=unsent if records is None else records,
            is_epoch_complete=is_complete,
            journal_until_ns=self.bench.clock.now_ns() if is_telling and of is None else 0,
            wants=tuple(
                Want(project=project, amount_neur=amount)
                for project, amount in (wants or {}).items()
            ),
            returns=dict(returns or {}),
            kept=dict(kept or {}),
            snapshot_version=self.snapshot_version,
        )
        reply = cast("SyncReply", self.bench.tell(SyncGateway(principal=GATEWAY, request=request)))
        journal.acknowledged = max(journal.acknowledged, reply.acknowledged_sequence)
        if reply.snapshot is not None:
            self.snapshot_version = reply.snapshot.version
        return reply

    def request(
        self,
        request: str,
        endpoint: str,
        *,
        project: str = "atelier",
        replica: str | None = None,
        tokens: int = 100,
        end: bool = False,
        hold_tokens: int = 500,
    ) -> None:
        """Journal the beginning of a request, and its end with `tokens` in and out."""
        attempt = f"{endpoint}.u0.g1" if replica is None else replica
        self.begin(request, endpoint, project=project, replica=attempt, tokens=hold_tokens)
        if end:
            self.end(request, endpoint, project=project, replica=attempt, tokens=tokens)

    def begin(
        self, request: str, endpoint: str, *, project: str, replica: str, tokens: int
    ) -> None:
        self._write(JournalKind.BEGIN, request, endpoint, project, replica, tokens)

    def end(
        self,
        request: str,
        endpoint: str,
        *,
        project: str = "atelier",
        replica: str | None = None,
        tokens: int = 100,
    ) -> None:
        attempt = f"{endpoint}.u0.g1" if replica is None else replica
        self._write(JournalKind.END, request, endpoint, project, attempt, tokens)

    def _write(
        self,
        kind: JournalKind,
        request: str,
        endpoint: str,
        project: str,
        replica: str,
        tokens: int,
    ) -> None:
        self.records.append(
            JournalRecord(
                sequence=len(self.records) + 1,
                kind=kind,
                request=request,
                at_ns=self.bench.clock.now_ns(),
                organisation="lab",
                project=project,
                key="key_k1",
                model="chat",
                endpoint=endpoint,
                replica=replica,
                zone="east",
                tokens_input=tokens,
                tokens_output=tokens,
                amount_neur=cost(tokens),
                outcome="completed" if kind is JournalKind.END else "",
            )
        )


def cost(tokens: int) -> int:
    """The price of as many tokens in and out in the bench's price book."""
    return 2 * 4000 * tokens
