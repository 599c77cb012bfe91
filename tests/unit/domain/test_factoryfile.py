"""Operator files: exact amounts, references that resolve, and refusals that name the place."""

from decimal import Decimal

import pytest

from moulin.catalog.machines import MACHINE_CLASSES
from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import (
    CountryBasis,
    MachineClass,
    ObjectKind,
    Organisation,
    OrganisationRole,
    Pool,
    Price,
    PriceBook,
    Project,
    Quota,
    Site,
    Zone,
    ZoneState,
    kind_of,
)
from moulin.domain.factoryfile import PRICES, parse_factory, parse_milliwatts
from moulin.domain.single import EXAMPLE_PRICES_NEUR, MachineFacts, default_objects
from moulin.domain.usage import Meter
from moulin.domain.wire import decode, encode, encode_public

BODY = {
    "organisations": {
        "op": {"title": "Operator", "roles": ["operator", "energy"], "countries": ["FR"]},
        "lab": None,
    },
    "sites": {
        "s": {
            "country": "FR",
            "operator": "op",
            "owners": {"op": "37.5%", "lab": Decimal("62.5")},
            "power_envelope": "1.5MW",
            "pue": {"value": Decimal("1.15"), "source": "design"},
            "carbon": {"location": Decimal("56.04"), "market": 12, "source": "stated"},
            "energy_price": Decimal("0.071"),
        }
    },
    "zones": {"z": {"site": "s", "state": "building"}},
    "pools": {"p": {"zone": "z", "engine": "simulated", "machine_class": "b300", "settings": {"nodes": 4}}},
    "projects": {
        "x": {
            "organisation": "lab",
            "quota": {"cpus": Decimal("1.5"), "memory": "2GB", "accelerators": 8, "workloads": 3},
            "budget": Decimal("0.000000001"),
            "job_time_limit": "2h",
        },
        "y": {"organisation": "lab"},
    },
    "prices": {
        "book": {
            "from": "2026-01-01T00:00:00Z",
            "cpu_hour": Decimal("0.024"),
            "accelerator_hour": {"default": 3, "b300": "7.50"},
            "million_output_tokens": {"some-model": Decimal("0.12")},
        }
    },
}  # fmt: skip


def parse(body, **known):
    return parse_factory(body, registry=MACHINE_CLASSES, **known)


def test_a_whole_operator_file():
    objects = parse(BODY)
    assert objects == (
        MACHINE_CLASSES["B300"],
        Organisation(name="lab", title="lab"),
        Organisation(
            name="op",
            title="Operator",
            roles=(OrganisationRole.OPERATOR, OrganisationRole.ENERGY),
            countries=("FR",),
        ),
        Site(
            name="s",
            country="FR",
            operator="op",
            owners={"op": 375_000, "lab": 625_000},
            power_envelope_w=1_500_000,
            pue_ppm=1_150_000,
            pue_source="design",
            carbon_location_ng_per_kwh=56_040_000_000,
            carbon_market_ng_per_kwh=12_000_000_000,
            carbon_source="stated",
            energy_price_neur_per_kwh=71_000_000,
        ),
        Zone(name="z", site="s", state=ZoneState.BUILDING),
        Pool(name="p", zone="z", engine="simulated", machine_class="B300", settings={"nodes": "4"}),
        Project(
            name="x",
            organisation="lab",
            quota=Quota(cpu_milli=1500, memory_bytes=2 * 10**9, accelerators=8, workloads=3),
            budget_neur=1,
            job_time_limit_s=7200,
        ),
        Project(name="y", organisation="lab"),
        PriceBook(
            name="book",
            effective_from_ns=1_767_225_600_000_000_000,
            prices=(
                Price(sku="cpu_hour", meter="cpu_milli_ms", unit_price_neur=24_000_000, per=3_600_000_000),
                Price(sku="accelerator_hour", meter="accelerator_ms", unit_price_neur=3 * 10**9, per=3_600_000),
                Price(
                    sku="accelerator_hour:B300",
                    meter="accelerator_ms",
                    unit_price_neur=7_500_000_000,
                    per=3_600_000,
                    subject="B300",
                ),
                Price(
                    sku="million_output_tokens:some-model",
                    meter="tokens_output",
                    unit_price_neur=120_000_000,
                    per=1_000_000,
                    subject="some-model",
                ),
            ),
        ),
    )  # fmt: skip


def test_objects_survive_the_wire():
    for value in parse(BODY):
        assert decode(type(value), encode(value)) == value
        assert decode(type(value), encode_public(value)) == value


def test_prices_are_for_whole_hours_and_millions():
    assert {meter for meter, _ in PRICES.values()} == set(Meter)
    hour_of_one_cpu = 1000 * 3_600_000
    assert PRICES["cpu_hour"] == (Meter.CPU_MILLI_MS, hour_of_one_cpu)
    assert PRICES["memory_gb_hour"] == (Meter.MEMORY_MB_MS, 1000 * 3_600_000)


def test_a_country_can_be_said_to_be_a_guess():
    (site,) = parse({"sites": {"s": {"country": "fr", "country_basis": "guessed"}}})
    assert isinstance(site, Site)
    assert (site.country, site.country_basis) == ("FR", CountryBasis.GUESSED)


def test_what_other_files_declare_may_be_named():
    body = {"zones": {"z": {"site": "elsewhere"}}}
    known = {ObjectKind.SITE: ("elsewhere",)}
    assert parse(body, known=known) == (Zone(name="z", site="elsewhere"),)


def test_a_class_that_another_file_declares_is_not_declared_again():
    body = {"pools": {"p": {"zone": "z", "engine": "e", "machine_class": "H100"}}}
    known = {ObjectKind.ZONE: ("z",), ObjectKind.MACHINE_CLASS: ("H100",)}
    assert [kind_of(each) for each in parse(body, known=known)] == [ObjectKind.POOL]


def test_a_class_of_ones_own():
    body = {
        "machine_classes": {
            "H100": None,
            "mine": {
                "is_accelerator": False,
                "memory": "1TB",
                "idle_power": "350mW",
                "peak_power": "1.2kW",
                "tera_flops": {"fp8_dense": 12},
                "sources": {"peak_power": "plug"},
            },
        }
    }
    h100, mine = parse(body)
    assert h100 == MACHINE_CLASSES["H100"]
    assert mine == MachineClass(
        name="mine",
        title="mine",
        is_accelerator=False,
        memory_bytes=10**12,
        idle_mw=350,
        peak_mw=1_200_000,
        tera_flops={"fp8_dense": 12},
        sources={"peak_power": "plug"},
    )


def site(**body):
    return {"organisations": {"op": {}}, "sites": {"s": {"country": "FR", **body}}}


BAD = [
    ({"sitess": {}}, "sitess: unknown key", "did you mean sites?"),
    ({"sites": {"s": {}}}, "sites.s.country: a site is in one country", "FR"),
    (site(country="France"), "sites.s.country: 'France' is not a country code", ""),
    (site(country=["FR", "SE"]), "a site is in one country", ""),
    (site(country_basis="attested"), "country_basis: there is no 'attested'", ""),
    (site(operator="opp"), "sites.s.operator: there is no organisation 'opp'", "mean op?"),
    (site(owners={"op": "60%"}), "sites.s.owners: the shares add up to 60 %, not 100 %", ""),
    (site(owners={"op": "33.33333%"}), "percent", ""),
    (site(owners={"op": -1}), "percent", ""),
    (site(owners={"other": 100}), "owners.other: there is no organisation", ""),
    (site(pue=Decimal("0.9")), "sites.s.pue: 0.9 is too little", ""),
    (site(pue=Decimal("1.12345678")), "at most 6 decimals", "1.15"),
    (site(pue={"valeu": 1}), "sites.s.pue.valeu: unknown key", "did you mean value?"),
    (site(power_envelope=12), "sites.s.power_envelope: read '12' as power", "12MW"),
    (site(power_envelope="1500mW"), "whole watts", ""),
    (site(power_envelope="999999999GW"), "as power", ""),
    (site(carbon={"location": 99999}), "grams per kWh", ""),
    (site(energy_price=Decimal("0.0000000001")), "at most 9 decimals", "12.50"),
    (site(energy_price="NaN"), "euros", ""),
    (site(energy_price="Infinity"), "euros", ""),
    ({"zones": {"z": {}}}, "zones.z.site: is missing", "site: NAME"),
    ({"zones": {"z": {"site": "s"}}}, "zones.z.site: there is no site 's'", "declare it"),
    ({**site(), "zones": {"z": {"site": "s", "state": "opened"}}}, "no 'opened'", "mean open?"),
    ({"machine_classes": {"H101": None}}, "the registry has no such class", "H100?"),
    ({"machine_classes": {"m": {"memory": "lots"}}}, "machine_classes.m.memory", ""),
    ({"machine_classes": {"m": {"tera_flops": {"fp8": "fast"}}}}, "m.tera_flops.fp8", ""),
    (
        {
            **site(),
            "zones": {"z": {"site": "s"}},
            "pools": {"p": {"zone": "z", "engine": "local", "machine_class": "B301"}},
        },
        "pools.p.machine_class: there is no machine class 'B301'",
        "did you mean B300?",
    ),
    ({"projects": {"x": {"organisation": "nobody"}}}, "projects.x.organisation", ""),
    ({"projects": {"x": {"organisation": "o", "budget": "free"}}}, "projects.x.budget", ""),
    ({"projects": {"x": {"organisation": "o", "budget": -1}}}, "budget", ""),
    ({"projects": {"bad name": {}}}, "'bad name' cannot be a name", ""),
    ({"projects": {"x": {"organisation": "o", "quota": {"gpus": 1}}}}, "quota.gpus", ""),
    ({"prices": {"b": {}}}, "prices.b: holds no price", "cpu_hour"),
    ({"prices": {"b": {"cpu_hours": 1}}}, "cpu_hours: unknown key", "cpu_hour?"),
    ({"prices": {"b": {"from": "tomorrow", "cpu_hour": 1}}}, "prices.b.from", "RFC 3339"),
    ({"prices": {"b": {"cpu_hour": [1]}}}, "prices.b.cpu_hour", ""),
    ({"organisations": {"o": {"roles": ["boss"]}}}, "organisations.o.roles.0", "known here"),
    ({"organisations": ["o"]}, "organisations: expected keys with values, found a list", ""),
]


@pytest.mark.parametrize(("body", "message", "hint"), BAD, ids=range(len(BAD)))
def test_wrong_files_are_refused_with_the_place(body, message, hint):
    with pytest.raises(InvalidSpec) as caught:
        parse(body)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("written", "milliwatts"), [("700W", 700_000), ("0.5 MW", 500_000_000), ("1mW", 1)]
)
def test_power(written, milliwatts):
    assert parse_milliwatts(written) == milliwatts


@pytest.mark.parametrize("written", ["700", "0.5mW", "W", "1e3W", "-1W"])
def test_power_that_is_none(written):
    with pytest.raises(InvalidSpec):
        parse_milliwatts(written)


def facts(**found):
    return MachineFacts(cpus=4, memory_bytes=8 * 10**9, **found)


def by_kind(objects):
    return {kind_of(each): each for each in objects}


def test_one_machine_without_a_stated_country_claims_none():
    found = by_kind(default_objects(facts()))[ObjectKind.SITE]
    assert (found.country, found.country_basis) == ("", CountryBasis.GUESSED)
    assert "no figure for the country" in found.carbon_source


def test_one_machine_in_a_stated_country():
    objects = by_kind(default_objects(facts(country="FR", nodes=2)))
    found = objects[ObjectKind.SITE]
    assert (found.country, found.country_basis) == ("FR", CountryBasis.ASSERTED)
    assert found.carbon_location_ng_per_kwh == 56_040_000_000
    assert objects[ObjectKind.POOL].settings == {"nodes": "2"}
    assert {price.sku for price in objects[ObjectKind.PRICE_BOOK].prices} == set(PRICES)


def test_the_default_objects_resolve_and_are_stable():
    objects = default_objects(facts(accelerator=MACHINE_CLASSES["H100"]))
    names = {(kind_of(each), each.name) for each in objects}
    zone = by_kind(objects)[ObjectKind.ZONE]
    assert (ObjectKind.SITE, zone.site) in names
    assert (ObjectKind.MACHINE_CLASS, "H100") in names
    assert objects == default_objects(facts(accelerator=MACHINE_CLASSES["H100"]))
    assert EXAMPLE_PRICES_NEUR["cpu_hour"] == 20_000_000


def test_storage_and_the_batch_price_have_words():
    body = {
        "organisations": {"lab": None},
        "projects": {
            "p": {"organisation": "lab", "quota": {"storage": "2GB"}},
            "q": {"organisation": "lab"},
        },
        "prices": {
            "book": {"batch": Decimal("0.4"), "cpu_hour": 1},
            "other": {"cpu_hour": 1},
        },
    }
    found = {each.name: each for each in parse(body)}
    assert found["p"].quota.stored_bytes == 2 * 10**9
    assert found["q"].quota.stored_bytes == 10 * 10**9
    assert (found["book"].batch_ppm, found["other"].batch_ppm) == (400_000, 500_000)
    body["prices"] = {"book": {"batch": Decimal("1.1"), "cpu_hour": 1}}
    with pytest.raises(InvalidSpec, match="batch"):
        parse(body)
