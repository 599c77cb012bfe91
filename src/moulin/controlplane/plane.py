"""What a control plane holds between cycles: its ports, its books and its limits.

Nothing here decides; `cycle.py` composes the stages over these parts.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from moulin.controlplane.books import Books
from moulin.controlplane.inbox import Inbox
from moulin.controlplane.retention import Forgetting
from moulin.domain.errors import NotFound
from moulin.domain.factory import Pool
from moulin.domain.health import NodeReading, Quarantine
from moulin.domain.ids import NodeId, StepId
from moulin.domain.notices import Notice
from moulin.domain.observation import Observation
from moulin.domain.secrets import SealedSecret
from moulin.domain.snapshot import GatewaySnapshot
from moulin.domain.usage import Meter, Usage
from moulin.energy import INPUT_TOKEN_WEIGHT, OUTPUT_TOKEN_WEIGHT
from moulin.ledger import Evidence
from moulin.ports.clock import Clock, IdSource
from moulin.ports.engine import Engine
from moulin.ports.launcher import Launcher
from moulin.ports.meter import NodeMeter
from moulin.ports.signer import Signer
from moulin.ports.store import Store
from moulin.routing.shares import Shares
from moulin.scheduler import SchedulerPolicy

EngineFor = Callable[[Pool], Engine]
PoolsCheck = Callable[[Sequence[Pool]], None]


def nobody_to_tell(_notice: Notice) -> None:
    """Let an alert or an end be known from the log alone."""


def any_pools(_pools: Sequence[Pool]) -> None:
    """Let pools stand beside one another, whatever they are."""


class OpensSecrets(Protocol):
    """Who holds the keys of secrets."""

    def open(self, secret: SealedSecret) -> bytes:
        """Return the value; raises `NotFound` when its key is gone."""
        ...

    def shred(self, ids: Collection[str]) -> None:
        """Destroy keys; what has none is left as it is. Raises `LocalError`."""
        ...


class NoVault:
    """A factory without secrets: a simulated one, or a test's."""

    def open(self, secret: SealedSecret) -> bytes:
        """Raise `NotFound`: there are no keys."""
        raise NotFound(f"open secret {secret.name}: this factory keeps none")

    def shred(self, ids: Collection[str]) -> None:
        """There is nothing to destroy."""


def no_bytes(name: str) -> str:
    """Raise `NotFound`: a simulated factory, or a test's, keeps no objects."""
    raise NotFound(f"find the bytes of {name}: this factory keeps none")


# What a request sends, in the unit of its model: one model counts in one of them.
_INPUT_METERS = (Meter.TOKENS_INPUT, Meter.AUDIO_MS, Meter.CHARACTERS_INPUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSettings:
    """Periods and limits. Periods are lower bounds: a busy cycle may come later."""

    factory_name: str = "factory"
    version: str = ""
    boot_id: str = ""
    cycle_wait_s: float = 0.1
    calls_max: int = 1000
    observe_period_s: float = 0.2
    sweep_period_s: float = 30.0
    capacity_period_s: float = 5.0
    metering_interval_s: float = 10.0
    metering_tasks_max: int = 50
    charges_max: int = 25
    snapshot_staleness_s: int = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The world as the control plane meets it.

    `check_pools` raises `InvalidSpec` for pools that cannot stand beside one another; `notify` takes an
    alert to tell a webhook and returns at once; `vault` opens secrets and destroys their keys;
    `bytes_at` says where the bytes of an object are. `check_program` is the text of what checks nodes
    together, `look_program` of what reads one; without the latter nobody looks.
    """

    store: Store
    clock: Clock
    ids: IdSource
    engine_for: EngineFor
    launcher: Launcher
    meter: NodeMeter
    signer: Signer
    check_pools: PoolsCheck = any_pools
    notify: Callable[[Notice], None] = nobody_to_tell
    vault: OpensSecrets = field(default_factory=NoVault)
    check_program: str = ""
    look_program: str = ""
    bytes_at: Callable[[str], str] = no_bytes


@dataclass(slots=True)
class Look:
    """A look at a node that began; `step` is empty after it, until the next may begin."""

    step: StepId
    began_ns: int


class TokenEnergy(NamedTuple):
    """Energy per input and output token in µJ, its class (`ESTIMATED` before any reading), its range."""

    input_uj: int
    output_uj: int
    quality: str
    uncertainty_ppm: int


@dataclass(slots=True, kw_only=True)
class Plane:
    """One leading control plane.

    `behind_ns` is how far the clock was behind the log when the lead was taken; `is_ahead` says that
    the books hold events that never became durable. `connected` are the pools as `engines` were
    asked for them. `unstarted` are steps whose placement is
    durable and whose start is not yet on record, `unstopped` (node, grace) of those whose stop did
    not reach the engine; `reports` are observations made while acting, taken by the next cycle.
    `unseen` are nodes that are to be looked at, as nothing that is read says whether they are well,
    `looks` those looks, `readings` what they saw; `avoided` is which nodes a pool's engine was told to
    keep off. `unmetered` are nodes whose interval is due, `forgetting` is what engines are to forget. `journal_until_ns` is the time up to which a
    gateway epoch has told all it did, `heard_ns` when it last said anything. `provisional_uj` maps
    an endpoint to its last measured energy per input and output token, for headers only, `priors` a
    replica to what was estimated before. `shares` says which gateway may use which
    part of rate limits, from the first that is heard.
    """

    ports: Ports
    settings: PlaneSettings
    policy: SchedulerPolicy
    inbox: Inbox
    epoch: int
    books: Books
    evidence: Evidence
    behind_ns: int = 0
    is_ahead: bool = False
    engines: dict[str, Engine] = field(default_factory=dict)
    connected: dict[str, Pool] = field(default_factory=dict)
    unstarted: set[StepId] = field(default_factory=set)
    unstopped: dict[StepId, tuple[NodeId, int]] = field(default_factory=dict)
    reports: list[Observation] = field(default_factory=list)
    unmetered: dict[NodeId, None] = field(default_factory=dict)
    forgetting: Forgetting = field(default_factory=Forgetting)
    due_ns: dict[str, int] = field(default_factory=dict)
    unseen: set[NodeId] = field(default_factory=set)
    looks: dict[NodeId, Look] = field(default_factory=dict)
    readings: list[NodeReading] = field(default_factory=list)
    avoided: dict[str, tuple[Engine, Mapping[NodeId, Quarantine]]] = field(default_factory=dict)
    journal_until_ns: dict[tuple[str, int], int] = field(default_factory=dict)
    heard_ns: dict[tuple[str, int], int] = field(default_factory=dict)
    led_since_ns: int = 0
    snapshot: GatewaySnapshot | None = None
    snapshot_sequence: int = -1
    provisional_uj: dict[str, TokenEnergy] = field(default_factory=dict)
    priors: dict[str, TokenEnergy] = field(default_factory=dict)
    shares: Shares | None = None

    def now_ns(self) -> int:
        """Return the time, never before the log's last event: a restart may find an earlier clock."""
        return self.ports.clock.now_ns() + self.behind_ns

    def is_due(self, task: str, period_s: float, now_ns: int) -> bool:
        """Say whether a periodic task is due, and if so set its next time."""
        if now_ns < self.due_ns.get(task, 0):
            return False
        self.due_ns[task] = now_ns + int(period_s * 1_000_000_000)
        return True

    def learn(self, usages: Iterable[Usage]) -> None:
        """Keep the energy per token of finished requests, to two digits, for provisional figures."""
        for usage in usages:
            tokens_in = sum(usage.quantities.get(meter, 0) for meter in _INPUT_METERS)
            tokens_out = usage.quantities.get(Meter.TOKENS_OUTPUT, 0)
            weight = INPUT_TOKEN_WEIGHT * tokens_in + OUTPUT_TOKEN_WEIGHT * tokens_out
            if usage.request and weight and usage.energy_mj:
                uj = round_to_two_digits(usage.energy_mj * 1000 // weight)
                self.provisional_uj[usage.workload] = TokenEnergy(
                    uj * INPUT_TOKEN_WEIGHT,
                    uj * OUTPUT_TOKEN_WEIGHT,
                    usage.energy_quality.value,
                    usage.energy_uncertainty_ppm,
                )
        for gone in sorted(self.provisional_uj.keys() - self.books.endpoints):
            del self.provisional_uj[gone]
        attempts = self.books.schedule.attempts
        self.priors = {name: each for name, each in self.priors.items() if name in attempts}


def round_to_two_digits(value: int) -> int:
    """Round down to two significant digits, so that snapshots do not change with every request.

    >>> round_to_two_digits(12_345)
    12000
    """
    scale: int = 10 ** max(0, len(str(value)) - 2)
    return value // scale * scale
