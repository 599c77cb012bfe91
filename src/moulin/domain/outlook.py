"""What a model would take, give and cost on each machine, and how its price is made: values only.

Every number that is not exact arithmetic on stated sizes is a `Figure`: it carries where it comes
from, and an estimate never looks like a measurement.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from moulin.domain.model import MemoryNeed
from moulin.domain.usage import ChargeLine


class Basis(StrEnum):
    """How a figure is known."""

    MEASURED = "measured"
    ESTIMATED = "estimated by"
    STATED = "stated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number with its origin; the unit is in the name of the field that holds it.

    `origin` is a sentence: the sample of a measurement, the formula with its numbers of an
    estimate, the document of a statement. `quality` and `uncertainty_ppm` are for energy and carbon.
    """

    amount: int = 0
    basis: Basis = Basis.UNKNOWN
    origin: str = ""
    quality: str = ""
    uncertainty_ppm: int = 0


UNKNOWN = Figure()


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Thousandths of a token per second, at the context and the requests that were asked for.

    `output_milli` is one request's stream, `output_total_milli` all requests together,
    `input_milli` how fast prompts are read.
    """

    output_milli: Figure = UNKNOWN
    output_total_milli: Figure = UNKNOWN
    input_milli: Figure = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class PerMillion:
    """What a million tokens cost, by what is counted; n€, mJ and ng CO2e (location based)."""

    input_price: Figure = UNKNOWN
    output_price: Figure = UNKNOWN
    input_energy: Figure = UNKNOWN
    output_energy: Figure = UNKNOWN
    input_carbon: Figure = UNKNOWN
    output_carbon: Figure = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRow:
    """One variant on one machine class.

    `devices` is how many of the class one replica needs (0: it does not fit one fast-linked domain);
    `available_bytes` is their memory. `context_max_tokens` is the longest context that fits for as
    many requests as were asked for, 0 when none does. `problem` says with numbers why it does not
    fit, or why nothing is known.
    """

    variant: str
    precision: str
    machine_class: str
    devices: int
    need: MemoryNeed
    needed_bytes: int
    available_bytes: int
    kv_bytes_per_token: int
    context_max_tokens: int
    is_fitting: bool
    problem: str = ""
    runtime: str = ""
    site: str = ""
    speed: Speed = field(default_factory=Speed)
    per_million: PerMillion = field(default_factory=PerMillion)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFit:
    """Where a model fits and what is to be expected there; `context_tokens` is per request."""

    model: str
    context_tokens: int
    parallel_requests: int
    rows: tuple[FitRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceAt:
    """The same example request in one zone: its energy and carbon, with overhead of the site.

    `energy` is in mJ, `carbon_location` and `carbon_market` in ng CO2e; `energy_cost_neur` is what
    the energy costs the operator, -1 for those who may not see it.
    """

    zone: str
    site: str
    country: str
    machine_class: str
    pue_ppm: int
    pue_source: str
    carbon_source: str
    energy: Figure
    carbon_location: Figure
    carbon_market: Figure
    energy_cost_neur: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceExplained:
    """From the price book to an example request's charge, energy and carbon.

    A meter without a price is free and has no line. `rules` are the sentences that turn the book
    into the charge.
    """

    model: str
    price_book: str
    price_book_digest: str
    effective_from_ns: int
    currency: str
    tokens_input: int
    tokens_output: int
    lines: tuple[ChargeLine, ...]
    amount_neur: int
    rules: tuple[str, ...]
    places: tuple[PriceAt, ...] = ()
