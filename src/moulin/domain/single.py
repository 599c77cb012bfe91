"""The factory that one machine is: what `moulin up` declares on an empty data directory.

Its prices are examples and its carbon figure is a stated annual mean; an operator file replaces
both. A country is asserted only when somebody asserted it; otherwise it stays empty and guessed,
so that no `where` is ever satisfied by an assumption (DESIGN rule 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moulin.domain.factory import (
    CountryBasis,
    DeclaredObject,
    MachineClass,
    Organisation,
    OrganisationRole,
    Pool,
    PriceBook,
    Project,
    Site,
    Zone,
)
from moulin.domain.factoryfile import make_price
from moulin.domain.units import NEUR_PER_EUR, NG_PER_G

SITE: Final = "this-site"
ZONE: Final = "local"
POOL: Final = "this-machine"
ORGANISATION: Final = "default"
PROJECT: Final = "default"
PRICE_BOOK: Final = "example-prices"
MANAGED_BY: Final = "moulin up"

# Euros for what PRICES of the operator file names; round figures, said to be examples.
EXAMPLE_PRICES_NEUR: Final[Mapping[str, int]] = {
    "cpu_hour": NEUR_PER_EUR * 2 // 100,
    "memory_gb_hour": NEUR_PER_EUR * 25 // 10_000,
    "accelerator_hour": NEUR_PER_EUR * 3,
    "million_input_tokens": NEUR_PER_EUR * 10 // 100,
    "million_output_tokens": NEUR_PER_EUR * 30 // 100,
    "audio_hour": NEUR_PER_EUR * 20 // 100,
    "million_input_characters": NEUR_PER_EUR * 8,
}
# Hundredths of a gram per kWh, annual means of production.
_CENTIGRAMS_BY_COUNTRY: Final[Mapping[str, tuple[int, str]]] = {
    "FR": (5604, "annual mean for France in codecarbon 3.3.2: 56.04 g/kWh"),
    "DE": (27370, "mean of 2022 in OpenDC's grid trace for Germany: 273.7 g/kWh"),
    "BE": (4250, "mean of 2022 in OpenDC's grid trace for Belgium: 42.5 g/kWh"),
}
_ELSEWHERE: Final = (48000, "world mean of 2023, Ember 2024: 480 g/kWh; no figure for the country")
_PUE_SOURCE: Final = "taken as 1: one machine without a building of its own"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """What is known of this machine; power of the whole machine, 0 when no table has its CPU."""

    cpus: int
    memory_bytes: int
    cpu_title: str = ""
    architecture: str = ""
    idle_mw: int = 0
    peak_mw: int = 0
    power_source: str = ""
    accelerator: MachineClass | None = None
    nodes: int = 1
    country: str = ""


def default_objects(facts: MachineFacts) -> tuple[DeclaredObject, ...]:
    """Return one site with one open zone, this machine as its pool, one project and example prices.

    Equal facts give equal objects, so that starting again changes nothing.
    """
    centigrams, source = _CENTIGRAMS_BY_COUNTRY.get(facts.country, _ELSEWHERE)
    carbon_ng = centigrams * NG_PER_G // 100
    return (
        _machine(facts),
        *((facts.accelerator,) if facts.accelerator else ()),
        Organisation(
            name=ORGANISATION,
            title="Whoever uses this machine",
            roles=(OrganisationRole.OPERATOR, OrganisationRole.TENANT),
        ),
        Site(
            name=SITE,
            country=facts.country,
            country_basis=CountryBasis.ASSERTED if facts.country else CountryBasis.GUESSED,
            operator=ORGANISATION,
            pue_source=_PUE_SOURCE,
            carbon_location_ng_per_kwh=carbon_ng,
            carbon_market_ng_per_kwh=carbon_ng,
            carbon_source=source,
        ),
        Zone(name=ZONE, site=SITE),
        Pool(
            name=POOL,
            zone=ZONE,
            engine="local",
            machine_class=POOL,
            settings={"nodes": str(facts.nodes)},
        ),
        Project(name=PROJECT, organisation=ORGANISATION),
        PriceBook(
            name=PRICE_BOOK,
            effective_from_ns=0,
            prices=tuple(make_price(word, neur) for word, neur in EXAMPLE_PRICES_NEUR.items()),
        ),
    )


def _machine(facts: MachineFacts) -> MachineClass:
    source = "read from this machine's kernel"
    return MachineClass(
        name=POOL,
        title=facts.cpu_title or "this machine",
        is_accelerator=False,
        architecture=facts.architecture,
        memory_bytes=facts.memory_bytes,
        idle_mw=facts.idle_mw,
        peak_mw=facts.peak_mw,
        sources={
            "memory_bytes": source,
            "title": source,
            "idle_mw": facts.power_source,
            "peak_mw": facts.power_source,
        },
    )
