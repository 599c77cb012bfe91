"""Which figure is shown: this factory's own requests before an estimate, each with its origin."""

from dataclasses import replace

import pytest

from moulin.api.experience import Experience, Seen
from moulin.api.outlook import Surroundings, explain_price, fit_model
from moulin.catalog.entries import SMOLLM2_135M
from moulin.catalog.fit import Machine
from moulin.catalog.machines import MACHINE_CLASSES
from moulin.domain.factory import EnergyClass, Pool, Price, PriceBook, Site, Zone, ZoneState
from moulin.domain.ids import AttemptId, OrganisationId, ProjectId, WorkloadId
from moulin.domain.outlook import Basis
from moulin.domain.usage import WITHHELD_NEUR, Charge, Meter, Usage
from moulin.domain.views import ReceiptView

H100, H200 = (Machine(machine_class=MACHINE_CLASSES[name]) for name in ("H100", "H200"))
DIGEST = f"sha256:{SMOLLM2_135M.variants[0].sha256}"
SITE = Site(
    name="campus",
    country="FR",
    pue_ppm=1_200_000,
    carbon_location_ng_per_kwh=56 * 10**9,
    carbon_source="grid operator, mean of 2025",
    energy_price_neur_per_kwh=10**8,
)
BOOK = PriceBook(
    name="list",
    effective_from_ns=1,
    prices=(
        Price(sku="in", meter=Meter.TOKENS_INPUT, unit_price_neur=10**8, per=10**6),
        Price(sku="out", meter=Meter.TOKENS_OUTPUT, unit_price_neur=4 * 10**8, per=10**6),
        Price(
            sku="small-out",
            meter=Meter.TOKENS_OUTPUT,
            unit_price_neur=3 * 10**8,
            per=10**6,
            subject=SMOLLM2_135M.name,
        ),
    ),
)
AROUND = Surroundings(
    now_ns=2,
    machines=[H100, H200],
    books=[BOOK],
    sites={"campus": SITE},
    zones={
        "north": Zone(name="north", site="campus"),
        "south": Zone(name="south", site="campus", state=ZoneState.DRAINING),
    },
    pools=[
        Pool(name="a", zone="north", engine="slurm", machine_class="H100"),
        Pool(name="b", zone="south", engine="slurm", machine_class="H200"),
    ],
)
SEEN = Seen(
    requests=3,
    tokens_input=1000,
    tokens_output=250,
    open_ns=5 * 10**9,
    energy_mj=2000,
    quality=EnergyClass.HARDWARE_COUNTER,
    uncertainty_ppm=50_000,
)


def rows(around=AROUND):
    found = fit_model(SMOLLM2_135M, 2048, 1, around)
    return {row.machine_class: row for row in found.rows if row.runtime == "llm"}


def test_an_estimate_says_its_formula_and_its_doubt():
    row = rows()["H100"]
    energy = row.per_million.output_energy
    assert energy.basis is Basis.ESTIMATED
    assert "700 W" in energy.origin
    assert "PUE 1.2 of site campus" in energy.origin
    assert (energy.quality, energy.uncertainty_ppm) == ("D", 350_000)
    speed = row.speed.output_total_milli.amount
    assert energy.amount == 700_000 * 1_200_000 * 10**9 // (speed * 10**6)


def test_what_was_measured_comes_first_where_it_was_measured():
    found = rows(replace(AROUND, seen={DIGEST: {"north": SEEN}}))
    speed, energy = found["H100"].speed.output_milli, found["H100"].per_million.output_energy
    assert (speed.basis, speed.amount) == (Basis.MEASURED, 50_000)
    assert "3 finished requests in zone north" in speed.origin
    assert (energy.basis, energy.quality) == (Basis.MEASURED, "B")
    # 1000 x 1 + 250 x 4 = 2000 weights carry 2000 mJ.
    assert energy.amount == 4 * 10**6
    assert found["H100"].per_million.input_energy.amount == 10**6
    assert found["H200"].speed.output_milli.basis is Basis.ESTIMATED


def test_carbon_is_energy_times_the_sites_intensity():
    found = rows(replace(AROUND, seen={DIGEST: {"north": SEEN}}))["H100"].per_million
    assert found.output_carbon.amount == round(4 * 10**6 * 56 * 10**9 / 3_600_000_000)
    assert "grid operator" in found.output_carbon.origin
    assert found.output_carbon.quality == "B"


def test_a_class_of_no_open_zone_has_no_carbon():
    row = rows()["H200"]
    assert row.site == ""
    assert row.per_million.output_carbon.basis is Basis.UNKNOWN
    assert row.per_million.output_energy.amount > 0


def test_a_price_of_the_model_comes_before_the_default():
    price = rows()["H100"].per_million
    assert (price.input_price.amount, price.output_price.amount) == (10**8, 3 * 10**8)
    assert price.output_price.origin == "small-out of price book list"


def test_without_a_price_in_force_it_is_free_and_says_so():
    price = rows(replace(AROUND, now_ns=0))["H100"].per_million
    assert price.input_price.amount == 0
    assert "no price book in force" in price.input_price.origin


def test_an_example_is_priced_line_by_line():
    found = explain_price(SMOLLM2_135M, (2000, 300), AROUND)
    assert [(line.sku, line.amount_neur) for line in found.lines] == [
        ("in", 200_000),
        ("small-out", 90_000),
    ]
    assert found.amount_neur == 290_000
    (place,) = found.places
    assert (place.zone, place.machine_class) == ("north", "H100")
    assert place.energy_cost_neur == WITHHELD_NEUR


def test_the_operator_sees_what_the_energy_costs():
    around = replace(AROUND, seen={DIGEST: {"north": SEEN}}, is_operator=True)
    (place,) = explain_price(SMOLLM2_135M, (10**6, 10**6), around).places
    assert place.energy.amount == 5 * 10**6
    assert place.energy_cost_neur == round(5 * 10**6 * 10**8 / 3_600_000_000)
    assert place.carbon_location.amount == round(5 * 10**6 * 56 * 10**9 / 3_600_000_000)


class Receipts:
    """A store of nothing but receipts."""

    def __init__(self, receipts):
        self.kept = receipts
        self.reads = 0

    def receipts(self, project="", workload="", after="", limit=100):
        self.reads += 1
        start = next((n for n, each in enumerate(self.kept, 1) if each.id == after), 0)
        return self.kept[start : start + limit]


def receipt(name, *, request="req", organisation="uni", estimated=False, zone="north"):
    usage = Usage(
        id=name,
        workload=WorkloadId("end_1"),
        attempt=AttemptId("end_1.u0.g1"),
        organisation=OrganisationId(organisation),
        project=ProjectId("lab"),
        zone=zone,
        site="campus",
        country="FR",
        country_basis="asserted by the operator",
        start_ns=0,
        end_ns=2 * 10**9,
        quantities={Meter.TOKENS_INPUT: 10, Meter.TOKENS_OUTPUT: 20},
        model_digest=DIGEST,
        request=request,
        energy_mj=90,
        energy_quality=EnergyClass.FITTED_MODEL,
        energy_uncertainty_ppm=200_000,
        is_estimated=estimated,
    )
    charge = Charge(usage=name, price_book="list", lines=(), amount_neur=0, operator_cost_neur=0)
    return ReceiptView(
        id=name,
        organisation=organisation,
        project="lab",
        usage=usage,
        charge=charge,
        origin="o",
        leaf_index=0,
        issued_at_ns=0,
    )


def test_experience_counts_measured_requests_once():
    store = Receipts([receipt("a"), receipt("b", request=""), receipt("c", estimated=True)])
    found = Experience(store)  # type: ignore[arg-type]
    assert found.read(DIGEST)["north"].requests == 1
    store.kept.append(receipt("d", organisation="bank"))
    seen = found.read(DIGEST)["north"]
    assert (seen.requests, seen.output_milli, seen.energy_mj) == (2, 10_000, 180)
    assert (seen.quality, seen.uncertainty_ppm) == ("C", 200_000)
    assert store.reads == 2


@pytest.mark.parametrize(("organisation", "requests"), [("bank", 1), ("uni", 1), ("", 2)])
def test_experience_of_one_organisation_is_its_own(organisation, requests):
    store = Receipts([receipt("a"), receipt("b", organisation="bank")])
    found = Experience(store).read(DIGEST, organisation)  # type: ignore[arg-type]
    assert found["north"].requests == requests


def test_nobody_asked_this_model():
    assert Experience(Receipts([])).read(DIGEST, "uni") == {}  # type: ignore[arg-type]
