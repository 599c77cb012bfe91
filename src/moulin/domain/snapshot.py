"""What the control plane and an inference gateway tell each other (DESIGN rule 8).

The gateway never opens the database: it serves from a `GatewaySnapshot`, spends from grants of
escrowed money, and reports by journal records keyed (gateway, epoch, sequence).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from moulin.domain.limits import GatewayShare, RateLimit
from moulin.domain.model import Ability
from moulin.domain.objects import BATCH_FACTOR_PPM
from moulin.domain.reasons import Reason
from moulin.domain.units import divide_round_half_even

JOURNAL_VERSION: Final = 1
ESTIMATED: Final = "estimated"
"""Stands for a class of energy where nothing was metered yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersView:
    """How the users of a key are told apart, and what each may not exceed.

    `user` says that the key is one user's, whatever its requests name; `allowances` are names of
    users' allowances without the user (see `moulin.domain.limits`).
    """

    user: str = ""
    keeps_names: bool = False
    allowances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyView:
    """A key that may be used for inference; revoked keys are simply not in the snapshot.

    `line` is what its rate is counted under and `allowances` are all it must not exceed, its
    project's and organisation's among them (see `moulin.domain.limits`). `users` is None where
    nobody declared anything about them.
    """

    id: str
    digest: str
    organisation: str
    project: str
    models: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    expires_at_ns: int = 0
    line: str = ""
    rate: RateLimit = field(default_factory=RateLimit)
    allowances: tuple[str, ...] = ()
    users: UsersView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One ready replica. `key` authenticates the gateway to it; it is never shown to tenants.

    `energy_uj_per_*` are provisional figures for headers: as last metered, with the class and the
    uncertainty of that reading, or `ESTIMATED` from model and machine; 0 is not known.
    """

    attempt: str
    address: str
    key: str = field(repr=False)
    zone: str
    country: str
    country_basis: str
    parallel_requests: int = 1
    energy_uj_per_token_input: int = 0
    energy_uj_per_token_output: int = 0
    carbon_ng_per_j: int = 0
    energy_class: str = ""
    energy_uncertainty_ppm: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One endpoint under the name clients use. Prices are n€ for `price_per` tokens.

    A batch pays `batch_ppm` of them.
    What a model without tokens counts (`METERS_BY_ABILITY`) has its price in `price_input_neur`.
    `infill` are its marks of prefix, suffix and middle, empty where it cannot fill in.
    Where load moves its replicas, a request that finds none waits `cold_start_s`; `load_s` is how
    long the start of one is expected to take, from being wanted to being ready.
    `fallbacks` name the endpoints that serve, in order, when no replica of this one can.
    """

    name: str
    endpoint: str
    project: str
    is_public: bool
    context_tokens: int
    tokens_output_default: int
    price_input_neur: int
    price_output_neur: int
    price_per: int
    digest: str = ""
    created_s: int = 0
    ability: Ability = Ability.GENERATE
    infill: tuple[str, ...] = ()
    batch_ppm: int = BATCH_FACTOR_PPM
    replicas: tuple[ReplicaView, ...] = ()
    cold_start_s: int = 0
    load_s: int = 0
    fallbacks: tuple[str, ...] = ()

    def cost_neur(self, tokens_input: int, tokens_output: int) -> int:
        """Return the charge for a request, each line rounded half even as the ledger does."""
        return divide_round_half_even(
            tokens_input * self.price_input_neur, self.price_per
        ) + divide_round_half_even(tokens_output * self.price_output_neur, self.price_per)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectView:
    """What the gateway must know of a project: where it may be served, and how fast."""

    name: str
    organisation: str
    countries: tuple[str, ...] = ()
    rate: RateLimit = field(default_factory=RateLimit)
    organisation_rate: RateLimit = field(default_factory=RateLimit)


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasTarget:
    """An endpoint's name and its share of an alias, as a weight among those of the others."""

    model: str
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasView:
    """A name that stands for endpoints; for keys of every project where `project` is empty.

    From `deprecated_at_ns` answers warn, from `sunset_at_ns` there are none; 0 is never.
    """

    name: str
    project: str = ""
    targets: tuple[AliasTarget, ...] = ()
    deprecated_at_ns: int = 0
    sunset_at_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySnapshot:
    """Everything a gateway decides from. Older than `staleness_max_s`, it serves nobody."""

    version: int
    issued_at_ns: int
    staleness_max_s: int
    keys: tuple[KeyView, ...] = ()
    models: tuple[ModelView, ...] = ()
    projects: tuple[ProjectView, ...] = ()
    aliases: tuple[AliasView, ...] = ()


class JournalKind(StrEnum):
    """BEGIN is written before the first byte goes upstream, END when the request is settled."""

    BEGIN = "begin"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecord:
    """One line of a gateway's journal.

    BEGIN carries the reservation (`tokens_*` are upper bounds, `amount_neur` what was set aside);
    END carries what was used. A BEGIN without END is charged from its reservation.
    Models that do not count tokens count `audio_ms` or `characters_input` instead. `line` names the
    line of a batch, `BATCH.INDEX`; one that was cut costs nothing, because it is done again.
    `user` is whose request it was, as it is recorded; empty where users are not told apart.
    `outcome` is `completed`, `client_disconnected`, `upstream_failed` or `cut`.
    """

    sequence: int
    kind: JournalKind
    request: str
    at_ns: int
    organisation: str = ""
    project: str = ""
    key: str = ""
    model: str = ""
    endpoint: str = ""
    replica: str = ""
    zone: str = ""
    tokens_input: int = 0
    tokens_output: int = 0
    amount_neur: int = 0
    outcome: str = ""
    is_estimated: bool = False
    audio_ms: int = 0
    characters_input: int = 0
    line: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """A gateway's wish for escrow: best `amount_neur` for `project`, at least `least_neur`.

    `project` may also name an allowance (`moulin.domain.limits`), whose amounts may be tokens.
    `least_neur` is what the request that waits longest needs, or where none waits the next is taken
    to need; 0 asks for all or a refusal.
    """

    project: str
    amount_neur: int
    least_neur: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Escrow handed to one gateway epoch; `refusal` says why it is smaller than what was wanted."""

    project: str
    amount_neur: int
    refusal: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLoad:
    """What a gateway has to do for one endpoint: requests at replicas, waiting, the longest wait."""

    endpoint: str
    in_flight: int = 0
    queued: int = 0
    oldest_wait_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLoad:
    """All a gateway has under way, by endpoint, as it serves from the snapshot it names.

    `busy` are attempts that are not in that snapshot and still have requests under way.
    """

    endpoints: tuple[EndpointLoad, ...] = ()
    busy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequest:
    """What a gateway sends: journal records after the last acknowledged one, wishes, returns.

    `epoch` is a number the gateway process draws once from its start time; a larger one from the
    same gateway ends the earlier. `records_epoch` says whose journal the records come from: a
    restarted gateway first ships what its predecessor left, with `is_epoch_complete` on the last.
    `journal_until_ns` is the time of its own clock up to which the journal of `epoch` is told whole,
    with this request; 0 says nothing about that. After a reply that never came, `kept` maps every
    project to the escrow granted less the escrow given back, as the gateway knows it after this
    request; what the control plane has granted beyond that was lost on the way and goes back.
    `closed` are users' allowances of which the gateway holds nothing any more, with all that was
    used of them told: whatever was granted of them and not used goes back.
    `share` is the share of rate limits the gateway keeps to, `limited_ago_s` how long ago it last
    let a request through under one, -1 for never.
    """

    gateway: str
    epoch: int
    records_epoch: int
    records: tuple[JournalRecord, ...] = ()
    is_epoch_complete: bool = False
    journal_until_ns: int = 0
    wants: tuple[Want, ...] = ()
    returns: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    closed: tuple[str, ...] = ()
    snapshot_version: int = 0
    wait_s: int = 0
    load: GatewayLoad | None = None
    share: GatewayShare | None = None
    limited_ago_s: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReply:
    """What the control plane answers; `snapshot` is None when `snapshot_version` is current."""

    acknowledged_sequence: int
    now_ns: int
    snapshot: GatewaySnapshot | None = None
    grants: tuple[Grant, ...] = ()
    share: GatewayShare | None = None
