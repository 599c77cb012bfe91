"""Puts together where a model fits and what its use costs: catalogue, prices, sites, experience.

It decides which figure is shown when there are several: a measurement of this factory comes before
an estimate, and each says which it is. Everything here is read; nothing is charged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from moulin.api.experience import Seen
from moulin.catalog.fit import Machine, fit_rows
from moulin.domain.factory import Pool, PriceBook, Site, Zone, ZoneState
from moulin.domain.model import Model
from moulin.domain.outlook import (
    UNKNOWN,
    Basis,
    Figure,
    FitRow,
    ModelFit,
    PerMillion,
    PriceAt,
    PriceExplained,
)
from moulin.domain.units import MJ_PER_KWH, PPM, divide_round_half_even
from moulin.domain.usage import WITHHELD_NEUR, Meter
from moulin.energy.requests import SHARE_METHOD
from moulin.ledger import book_at, charge_line, find_price, price_book_digest

MILLION: Final = 10**6
_MILLI: Final = 1000
NOTES: Final = (
    (
        "memory: weights, KV cache, batch buffers and processes of the row's runtime, as measured on "
        "CPUs; on GPUs vLLM reserves nine tenths of the device"
    ),
    "speed at most: links between devices, sampling and scheduling only make it slower",
    (
        "energy estimated at the stated peak power and the highest speed: real energy per token is "
        "likely higher"
    ),
)
RULES: Final = (
    (
        "the book in force when a request starts applies; a price for the model comes before the "
        "default one; a meter without a price is free"
    ),
    "each line is quantity x unit price / per, rounded half to even once, to the nano-euro",
    "headers of an answer are provisional; the receipt is final when its metering interval closes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the factory declares around a model at one time; `seen` is by model digest, then zone."""

    now_ns: int
    machines: Sequence[Machine]
    books: Sequence[PriceBook] = ()
    sites: Mapping[str, Site] = field(default_factory=dict)
    zones: Mapping[str, Zone] = field(default_factory=dict)
    pools: Sequence[Pool] = ()
    seen: Mapping[str, Mapping[str, Seen]] = field(default_factory=dict)
    is_operator: bool = False

    def zone_of_class(self, machine_class: str) -> str:
        """Return the first open zone with a pool of a class, empty without one."""
        zones = sorted(p.zone for p in self.pools if p.machine_class == machine_class)
        return next((zone for zone in zones if self.is_open(zone)), "")

    def class_of_zone(self, zone: str) -> str:
        """Return the machine class of a zone that has only one, else empty."""
        found = {pool.machine_class for pool in self.pools if pool.zone == zone}
        return found.pop() if len(found) == 1 else ""

    def site_of(self, zone: str) -> Site | None:
        """Return the site of a zone."""
        found = self.zones.get(zone)
        return self.sites.get(found.site) if found else None

    def is_open(self, zone: str) -> bool:
        """Say whether work is placed in a zone."""
        return zone in self.zones and self.zones[zone].state is ZoneState.OPEN


def fit_model(
    model: Model, context_tokens: int, parallel_requests: int, around: Surroundings
) -> ModelFit:
    """Return where a model fits and what it gives and costs there.

    Raises `InvalidSpec` for a context or a number of requests that the model cannot have.
    """
    rows = fit_rows(model, around.machines, context_tokens, parallel_requests)
    digests = {variant.name: f"sha256:{variant.sha256}" for variant in model.variants}
    by_class = {machine.machine_class.name: machine for machine in around.machines}
    return ModelFit(
        model=model.name,
        context_tokens=context_tokens,
        parallel_requests=parallel_requests,
        rows=tuple(
            _complete(row, model, by_class[row.machine_class], digests.get(row.variant, ""), around)
            for row in rows
        ),
        notes=NOTES,
    )


def explain_price(model: Model, tokens: tuple[int, int], around: Surroundings) -> PriceExplained:
    """Return how a request of (input, output) tokens is priced now, and what it takes in each zone."""
    book = book_at(around.books, around.now_ns)
    meters = ((Meter.TOKENS_INPUT, tokens[0]), (Meter.TOKENS_OUTPUT, tokens[1]))
    lines = tuple(
        charge_line(found, meter, quantity)
        for meter, quantity in meters
        if (found := find_price(book, meter, model.name)) is not None
    )
    return PriceExplained(
        model=model.name,
        price_book=book.name if book else "",
        price_book_digest=price_book_digest(book) if book else "",
        effective_from_ns=book.effective_from_ns if book else 0,
        currency=book.currency if book else "EUR",
        tokens_input=tokens[0],
        tokens_output=tokens[1],
        lines=lines,
        amount_neur=sum(line.amount_neur for line in lines),
        rules=(*RULES, f"energy of a replica is {SHARE_METHOD}"),
        places=_places(model, tokens, around),
    )


def _complete(
    row: FitRow, model: Model, machine: Machine, digest: str, around: Surroundings
) -> FitRow:
    """Add what was measured, prices, energy and carbon to a row of the catalogue."""
    zone = around.zone_of_class(row.machine_class)
    site = around.site_of(zone)
    own = {
        name: seen
        for name, seen in around.seen.get(digest, {}).items()
        if around.class_of_zone(name) == row.machine_class
    }
    row = replace(row, site=site.name if site else "")
    if not row.is_fitting:
        return replace(row, per_million=_prices(PerMillion(), model, around))
    energy = _estimated_energy(row, machine, site)
    for name, seen in own.items():
        if seen.output_milli:
            measured = Figure(
                amount=seen.output_milli,
                basis=Basis.MEASURED,
                origin=f"output tokens / time a request was open, prompt included: {seen.told(name)}",
            )
            row = replace(row, speed=replace(row.speed, output_milli=measured))
            energy = _measured_energy(seen, name)
    return replace(row, per_million=_prices(_with_carbon(energy, site), model, around))


def _prices(found: PerMillion, model: Model, around: Surroundings) -> PerMillion:
    book = book_at(around.books, around.now_ns)
    return replace(
        found,
        input_price=_price(book, Meter.TOKENS_INPUT, model.name),
        output_price=_price(book, Meter.TOKENS_OUTPUT, model.name),
    )


def _price(book: PriceBook | None, meter: Meter, subject: str) -> Figure:
    found = find_price(book, meter, subject)
    if book is None or found is None:
        name = f"price book {book.name}" if book else "no price book in force"
        return Figure(basis=Basis.STATED, origin=f"free: no price for {meter} ({name})")
    return Figure(
        amount=divide_round_half_even(found.unit_price_neur * MILLION, found.per),
        basis=Basis.STATED,
        origin=f"{found.sku} of price book {book.name}",
    )


def _estimated_energy(row: FitRow, machine: Machine, site: Site | None) -> PerMillion:
    pue_ppm = site.pue_ppm if site else PPM
    place = f"PUE {pue_ppm / PPM:g} of site {site.name}" if site else "no site has this class"

    def figure(speed: Figure) -> Figure:
        power_mw = machine.machine_class.peak_mw * row.devices
        if not power_mw or not speed.amount:
            return UNKNOWN
        return Figure(
            amount=power_mw * pue_ppm * MILLION * _MILLI // (speed.amount * PPM),
            basis=Basis.ESTIMATED,
            origin=(
                f"peak power / speed of all requests, at least: {power_mw // _MILLI} W / "
                f"{speed.amount / _MILLI:.4g} tokens/s; {place}; "
                f"{machine.machine_class.sources.get('peak_mw', '')}"
            ),
            quality=machine.quality,
            uncertainty_ppm=machine.uncertainty_ppm,
        )

    return PerMillion(
        input_energy=figure(row.speed.input_milli),
        output_energy=figure(row.speed.output_total_milli),
    )


def _measured_energy(seen: Seen, zone: str) -> PerMillion:
    def figure(meter: Meter) -> Figure:
        return Figure(
            amount=seen.energy_per_million(meter),
            basis=Basis.MEASURED,
            origin=f"energy on receipts, {SHARE_METHOD}: {seen.told(zone)}",
            quality=seen.quality,
            uncertainty_ppm=seen.uncertainty_ppm,
        )

    return PerMillion(
        input_energy=figure(Meter.TOKENS_INPUT), output_energy=figure(Meter.TOKENS_OUTPUT)
    )


def _with_carbon(energy: PerMillion, site: Site | None) -> PerMillion:
    intensity = site.carbon_location_ng_per_kwh if site else 0
    source = site.carbon_source if site else ""
    return replace(
        energy,
        input_carbon=_carbon(energy.input_energy, intensity, source),
        output_carbon=_carbon(energy.output_energy, intensity, source),
    )


def _carbon(energy: Figure, ng_per_kwh: int, source: str) -> Figure:
    if energy.basis is Basis.UNKNOWN or not ng_per_kwh:
        return UNKNOWN
    return replace(
        energy,
        amount=divide_round_half_even(energy.amount * ng_per_kwh, MJ_PER_KWH),
        origin=f"energy x {ng_per_kwh / 10**9:g} g CO2e/kWh ({source})",
    )


def _places(model: Model, tokens: tuple[int, int], around: Surroundings) -> tuple[PriceAt, ...]:
    """Return the example in each open zone, from the first variant that fits what is there."""
    found = []
    context_tokens = min(max(1, sum(tokens)), max(1, model.architecture.context_max_tokens))
    rows = fit_model(model, context_tokens, 1, around).rows
    for zone in sorted(around.zones):
        own = [row for row in rows if row.machine_class == around.class_of_zone(zone)]
        fitting = sorted(
            (row for row in own if row.is_fitting),
            key=lambda row: row.per_million.output_energy.basis is not Basis.MEASURED,
        )
        if around.is_open(zone) and fitting:
            found.append(_place(zone, fitting[0], tokens, around))
    return tuple(found)


def _place(zone: str, row: FitRow, tokens: tuple[int, int], around: Surroundings) -> PriceAt:
    site = around.site_of(zone) or Site(name="unknown", country="")
    figures = (row.per_million.input_energy, row.per_million.output_energy)
    energy = replace(
        figures[1],
        amount=sum(
            divide_round_half_even(each.amount * count, MILLION)
            for each, count in zip(figures, tokens, strict=True)
        ),
        origin=f"{tokens[0]} input and {tokens[1]} output tokens x energy per token; "
        f"per output token: {figures[1].origin}",
    )
    cost_neur = divide_round_half_even(energy.amount * site.energy_price_neur_per_kwh, MJ_PER_KWH)
    return PriceAt(
        zone=zone,
        site=site.name,
        country=site.country,
        machine_class=row.machine_class,
        pue_ppm=site.pue_ppm,
        pue_source=site.pue_source,
        carbon_source=site.carbon_source,
        energy=energy,
        carbon_location=_carbon(energy, site.carbon_location_ng_per_kwh, site.carbon_source),
        carbon_market=_carbon(energy, site.carbon_market_ng_per_kwh, site.carbon_source),
        energy_cost_neur=cost_neur if around.is_operator else WITHHELD_NEUR,
    )
