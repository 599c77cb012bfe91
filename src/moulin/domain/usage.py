"""From reading to money: readings, usages, charges, balanced entries and receipts as values.

Conservation is exact to the unit; accuracy is another matter and is carried beside each figure
as class and uncertainty (DESIGN rule 2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from moulin.domain.factory import EnergyClass
from moulin.domain.ids import (
    AttemptId,
    NodeId,
    OrganisationId,
    ProjectId,
    ReceiptId,
    StepId,
    WorkloadId,
)


class Meter(StrEnum):
    """What is counted. Held time is counted in milli-CPU x ms, byte x ms, device x ms.

    `AUDIO_MS` is the length of audio that was transcribed, `CHARACTERS_INPUT` the text spoken.
    """

    CPU_MILLI_MS = "cpu_milli_ms"
    MEMORY_MB_MS = "memory_mb_ms"
    ACCELERATOR_MS = "accelerator_ms"
    TOKENS_INPUT = "tokens_input"
    TOKENS_OUTPUT = "tokens_output"
    AUDIO_MS = "audio_ms"
    CHARACTERS_INPUT = "characters_input"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReading:
    """What one task held and used over [start_ns, end_ns) of a node's metering interval.

    `cpu_ns` is what the task's process tree used, read from the tasks' side, independently of
    the node's own reading; with `is_unread` nobody could read it. `memory_bytes_max` is the most it
    ever used, 0 while that is not known. With `is_whole_node` nobody else has the node meanwhile.
    """

    step: StepId
    attempt: AttemptId
    workload: WorkloadId
    organisation: OrganisationId
    project: ProjectId
    start_ns: int
    end_ns: int
    cpu_ns: int
    cpu_milli: int
    memory_bytes: int
    accelerators: int = 0
    is_whole_node: bool = False
    is_unread: bool = False
    memory_bytes_max: int = 0


NOT_READ: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading:
    """One node over [start_ns, end_ns): its own CPU counter and its modelled or metered energy.

    `idle_mj` is measured or modelled on its own, never reading minus receipts.
    `energy_mj` = `idle_mj` + what load added. `cpu_ns` is the node's whole busy time.
    """

    node: NodeId
    zone: str
    start_ns: int
    end_ns: int
    cpu_ns: int
    cpu_milli: int
    energy_mj: int
    idle_mj: int
    method: str
    quality: EnergyClass
    uncertainty_ppm: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAllocation:
    """Where a node's reading went: tasks + idle + unattributed = reading, to the mJ.

    `task_mj` maps a step to its share, PUE not included; `overhead_mj` is the site's PUE overhead
    on the whole reading and `task_overhead_mj` the steps' shares of it. `task_standing_mj` is the
    part of `task_mj` that holding the node costs whether or not the step works.
    """

    reading: NodeReading
    task_mj: Mapping[StepId, int]
    idle_mj: int
    unattributed_mj: int
    overhead_mj: int
    task_overhead_mj: Mapping[StepId, int]
    task_standing_mj: Mapping[StepId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestUsage:
    """One finished inference request as the gateway's journal states it.

    `replica` is the attempt that served it and `user` whose request it was, as it is recorded. `is_estimated` marks a charge made from the
    reservation because the journal was lost or the call was cut. `line` names the line of a batch
    that it carried out; `is_repeated` when that line was charged before. A request counts tokens, or the
    milliseconds of audio it sent, or the characters it had spoken.
    """

    request: str
    organisation: OrganisationId
    project: ProjectId
    key: str
    model: str
    replica: AttemptId
    zone: str
    start_ns: int
    end_ns: int
    tokens_input: int
    tokens_output: int
    outcome: str
    is_estimated: bool = False
    audio_ms: int = 0
    characters_input: int = 0
    line: str = ""
    is_repeated: bool = False
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """A quantity over [start_ns, end_ns) with its share of energy and carbon.

    `quantities` maps a `Meter` to an amount. `energy_mj` includes `overhead_mj`.
    `line` names the line of a batch, which is charged once: a repetition costs nothing. `key` is the key a
    request came with and `user` its user as recorded; both are in the books and not on the receipt, and
    so are the CPU time that tasks used of what they held (`NOT_READ` where nobody could read it) and
    the most memory that one of them used.
    """

    id: str
    workload: WorkloadId
    attempt: AttemptId
    organisation: OrganisationId
    project: ProjectId
    zone: str
    site: str
    country: str
    country_basis: str
    start_ns: int
    end_ns: int
    quantities: Mapping[str, int]
    subject: str = ""
    model_digest: str = ""
    request: str = ""
    energy_mj: int = 0
    overhead_mj: int = 0
    energy_method: str = ""
    energy_quality: EnergyClass = EnergyClass.CONSTANT
    energy_uncertainty_ppm: int = 0
    carbon_location_ng: int = 0
    carbon_market_ng: int = 0
    carbon_source: str = ""
    policy_decision: str = ""
    is_estimated: bool = False
    line: str = ""
    is_repeated: bool = False
    key: str = ""
    user: str = ""
    cpu_used_ns: int = NOT_READ
    memory_bytes_max: int = 0


WHOLE_PPM: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeLine:
    """One priced quantity; `amount_neur` = quantity x unit price / per, rounded half even once.

    `factor_ppm` is the part of the price that is charged: less than all of it in a batch.
    """

    sku: str
    meter: str
    quantity: int
    unit_price_neur: int
    per: int
    amount_neur: int
    factor_ppm: int = WHOLE_PPM


WITHHELD_NEUR: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a usage costs its project, and apart from it what its energy cost the operator.

    `price_book` is a name and `price_book_digest` the SHA-256 of that book's exact contents.
    The operator's cost is shown to the operator; others read `WITHHELD_NEUR`.
    """

    usage: str
    price_book: str
    lines: tuple[ChargeLine, ...]
    amount_neur: int
    operator_cost_neur: int
    price_book_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """One side of an entry; exactly one of debit and credit is above zero."""

    account: str
    debit_neur: int = 0
    credit_neur: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A balanced ledger line; `cause` is the usage or reservation it comes from."""

    id: str
    at_ns: int
    organisation: OrganisationId
    project: ProjectId
    cause: str
    postings: tuple[Posting, ...]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A usage with its charge, as committed to the evidence log.

    `salt` and `leaf_bytes` open the commitment in the log; erasing the salt erases the link.
    `index` is the leaf's place in the shard named `origin`. `operator_commitment` stands in the
    receipt for the operator's cost, which the operator may open to an auditor or withhold.
    """

    id: ReceiptId
    usage: Usage
    charge: Charge
    salt: bytes
    leaf_bytes: bytes
    origin: str
    index: int
    operator_commitment: str = ""
