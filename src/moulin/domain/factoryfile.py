"""What an operator file declares: its mapping, already loaded, becomes the factory's objects.

It decides which words and amounts are acceptable and turns every amount into exact integers: euros
per hour or per million tokens into n€ per quantity of a `Meter`, g/kWh into ng/kWh, percent into
millionths. It never opens a file and never changes anything (see `moulin.controlplane.declare`).
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, Final

from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import (
    Alias,
    CountryBasis,
    DeclaredObject,
    MachineClass,
    ObjectKind,
    Organisation,
    OrganisationRole,
    Pool,
    PoolMode,
    PreemptionScope,
    Price,
    PriceBook,
    Project,
    Quota,
    Site,
    Zone,
    ZoneState,
    kind_of,
)
from moulin.domain.limitsfile import read_allowance, read_rate, read_user_rule, read_webhook
from moulin.domain.objects import BATCH_FACTOR_PPM, PROJECT_BYTES_MAX
from moulin.domain.preflight import Preflight
from moulin.domain.section import Keys, Section, nearest, section, shown
from moulin.domain.units import (
    NEUR_PER_EUR,
    NG_PER_G,
    PPM,
    format_scaled,
    parse_bytes,
    parse_cpu_milli,
    parse_duration_s,
    parse_time,
)
from moulin.domain.usage import Meter

TOP_KEYS: Final = Keys(
    (
        *("machine_classes", "organisations", "sites", "zones", "pools", "projects", "prices"),
        "aliases",
    )
)
MACHINE_KEYS: Final = Keys(
    (
        *("title", "is_accelerator", "architecture", "memory", "tera_flops", "idle_power"),
        *("peak_power", "interconnect", "devices_per_domain", "lifecycle", "sources"),
    )
)
ORGANISATION_KEYS: Final = Keys(("title", "roles", "countries", "limits", "allowance", "webhook"))
SITE_KEYS: Final = Keys(
    (
        *("country", "country_basis", "operator", "owners", "power_envelope", "pue"),
        *("carbon", "energy_price"),
    )
)
PUE_KEYS: Final = Keys(("value", "source"))
CARBON_KEYS: Final = Keys(("location", "market", "source"))
ZONE_KEYS: Final = Keys(("site", "state"))
POOL_KEYS: Final = Keys(
    ("zone", "engine", "machine_class", "mode", "settings", "preflight", "preemption")
)
PREFLIGHT_KEYS: Final = Keys(("every", "rate_min", "round_trip_us_max", "size", "time_limit"))
PROJECT_KEYS: Final = Keys(
    (
        *("organisation", "quota", "budget", "job_time_limit"),
        *("limits", "allowance", "webhook", "per_user", "preemptible"),
    )
)
QUOTA_KEYS: Final = Keys(("cpus", "memory", "accelerators", "workloads", "storage"))

ALIAS_KEYS: Final = Keys(("targets", "project", "deprecated", "sunset"))
ALIAS_TARGETS_MAX: Final = 16
ALIAS_WEIGHT_MAX: Final = 1_000_000

MS_PER_HOUR: Final = 3_600_000
TOKENS_PER_MILLION: Final = 1_000_000
CHARACTERS_PER_MILLION: Final = 1_000_000
# Price word -> meter and how many of its units the price is for.
PRICES: Final[Mapping[str, tuple[Meter, int]]] = {
    "cpu_hour": (Meter.CPU_MILLI_MS, 1000 * MS_PER_HOUR),
    "memory_gb_hour": (Meter.MEMORY_MB_MS, 1000 * MS_PER_HOUR),
    "accelerator_hour": (Meter.ACCELERATOR_MS, MS_PER_HOUR),
    "million_input_tokens": (Meter.TOKENS_INPUT, TOKENS_PER_MILLION),
    "million_output_tokens": (Meter.TOKENS_OUTPUT, TOKENS_PER_MILLION),
    "audio_hour": (Meter.AUDIO_MS, MS_PER_HOUR),
    "million_input_characters": (Meter.CHARACTERS_INPUT, CHARACTERS_PER_MILLION),
}
PRICE_KEYS: Final = Keys(("from", "batch", *PRICES))
DEFAULT_SUBJECT: Final = "default"

WATTS_MAX: Final = 10**11
EUROS_MAX: Final = 10**15
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/ -]{0,62}")
_WATTS: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(GW|MW|kW|W|mW)")
_MILLIWATTS_BY_SUFFIX: Final = {"mW": 1, "W": 10**3, "kW": 10**6, "MW": 10**9, "GW": 10**12}

Known = Mapping[ObjectKind, Collection[str]]
Registry = Mapping[str, MachineClass]


class StatedBasis(StrEnum):
    """What an operator can say of a country; an attestation is proven, not declared."""

    ASSERTED = "asserted"
    GUESSED = "guessed"


def parse_factory(
    body: object,
    *,
    registry: Registry,
    origin: str = "factory.yaml",
    known: Known | None = None,
) -> tuple[DeclaredObject, ...]:
    """Return the objects that the mapping of an operator file declares, in order of their kinds.

    `registry` holds the shipped machine classes by name: one that a pool names is declared along
    with it. `known` names objects that other files declare and this one may refer to.

    Raises `InvalidSpec` with the path of the first key that is unknown, missing, of a wrong type
    or impossible, and for a reference to nothing (naming the nearest).
    """
    top = section(body, TOP_KEYS, origin=origin)
    objects: list[DeclaredObject] = [
        *_machine_classes(top, registry),
        *_organisations(top),
        *_sites(top),
        *_zones(top),
    ]
    pools = tuple(_pools(top, registry))
    objects += _registered(pools, objects, known or {}, registry)
    objects += [*pools, *_projects(top), *_price_books(top, registry), *_aliases(top)]
    _check_references(top, objects, known or {}, registry)
    order = list(ObjectKind)
    return tuple(sorted(objects, key=lambda each: (order.index(kind_of(each)), each.name)))


def parse_milliwatts(written: str) -> int:
    """Read `700W`, `1.2MW` or `350mW` exactly; raises `InvalidSpec` for another form.

    >>> parse_milliwatts("1.2MW")
    1200000000
    """
    found = _WATTS.fullmatch(written.strip())
    value = Decimal(found[1]) * _MILLIWATTS_BY_SUFFIX[found[2]] if found else Decimal("0.5")
    if value != value.to_integral_value() or value > WATTS_MAX * 1000:
        raise InvalidSpec(f"read {shown(written)} as power", hint="write for example 700W or 12MW")
    return int(value)


def exactly(scale: int, maximum: int, what: str, example: str) -> Callable[[Any], int]:
    """Return a parser of a number times `scale` that refuses what it would have to round.

    `maximum` is in the number's own unit. The parser raises `InvalidSpec`.
    """

    def parse(written: object) -> int:
        """Return the scaled number; raises `InvalidSpec`."""
        try:
            value = Decimal(str(written).strip().removesuffix("€").strip())
            scaled = value * scale
            is_exact = value.is_finite() and scaled == scaled.to_integral_value()
        except InvalidOperation:
            raise InvalidSpec(
                f"read {shown(written)} as {what}", hint=f"write for example {example}"
            ) from None
        if not is_exact or not 0 <= value <= maximum:
            raise InvalidSpec(
                f"read {shown(written)} as {what}: it must be from 0 to {maximum} with at most "
                f"{len(str(scale)) - 1} decimals",
                hint=f"write for example {example}",
            )
        return int(scaled)

    return parse


_EUROS: Final = exactly(NEUR_PER_EUR, EUROS_MAX, "euros", "12.50")
_GRAMS: Final = exactly(NG_PER_G, 5_000, "grams per kWh", "56.7")
_FACTOR: Final = exactly(PPM, 10, "a factor", "1.15")
_FLOPS: Final = exactly(1, 10**9, "tera-FLOPS", "4500")


def _percent(written: object) -> int:
    text = str(written).strip().removesuffix("%").strip()
    return exactly(PPM // 100, 100, "percent", "37.5%")(text)


def _watts(written: str) -> int:
    milliwatts = parse_milliwatts(written)
    if milliwatts % 1000:
        raise InvalidSpec(f"read {shown(written)} as whole watts", hint="write for example 700W")
    return milliwatts // 1000


def _in_registry(registry: Registry, name: str) -> MachineClass | None:
    """Return the registered class of that name in any capitals."""
    folded = name.casefold()
    return next((each for each in registry.values() if each.name.casefold() == folded), None)


def _machine_classes(top: Section, registry: Registry) -> Iterator[MachineClass]:
    for name, item in top.entries("machine_classes", MACHINE_KEYS):
        if not item.body:
            registered = _in_registry(registry, name)
            if registered is None:
                hint = nearest(name, tuple(registry))
                top.refuse(f"machine_classes.{name}", "the registry has no such class", hint)
            yield registered
            continue
        flops = item.child(
            "tera_flops", Keys(tuple(item.text_map("tera_flops", form=_WORD, items_max=64)))
        )
        yield MachineClass(
            name=name,
            title=item.text("title", name),
            is_accelerator=item.flag("is_accelerator", default=True),
            architecture=item.text("architecture"),
            memory_bytes=item.measure("memory", parse_bytes, 0),
            tera_flops={word: flops.measure(word, _FLOPS, 0) for word in flops.body},
            idle_mw=item.measure("idle_power", parse_milliwatts, 0),
            peak_mw=item.measure("peak_power", parse_milliwatts, 0),
            interconnect=item.text("interconnect"),
            devices_per_domain=item.integer("devices_per_domain", 0, minimum=0, maximum=100_000),
            lifecycle=item.text("lifecycle", "ga"),
            sources=item.text_map("sources", form=_WORD, items_max=64),
        )


def _registered(
    pools: Collection[Pool],
    objects: Collection[DeclaredObject],
    known: Known,
    registry: Registry,
) -> Iterator[MachineClass]:
    """Yield the registry's classes that pools name and no file declares."""
    declared = {each.name for each in objects if isinstance(each, MachineClass)}
    declared |= set(known.get(ObjectKind.MACHINE_CLASS, ()))
    for name in dict.fromkeys(pool.machine_class for pool in pools):
        if name in registry and name not in declared:
            yield registry[name]


def _organisations(top: Section) -> Iterator[Organisation]:
    for name, item in top.entries("organisations", ORGANISATION_KEYS):
        roles = item.texts("roles") or (OrganisationRole.TENANT.value,)
        words = Section(item.origin, item.at("roles"), {str(i): r for i, r in enumerate(roles)})
        yield Organisation(
            name=name,
            title=item.text("title", name),
            roles=tuple(
                words.word(place, OrganisationRole, OrganisationRole.TENANT) for place in words.body
            ),
            countries=item.countries("countries"),
            rate=read_rate(item),
            allowance=read_allowance(item),
            webhook=read_webhook(item),
        )


def _sites(top: Section) -> Iterator[Site]:
    for name, item in top.entries("sites", SITE_KEYS):
        basis = item.word("country_basis", StatedBasis, StatedBasis.ASSERTED)
        countries = item.countries("country")
        if len(countries) != 1:
            item.refuse("country", "a site is in one country", "write for example `country: FR`")
        pue_ppm, pue_source = _pue(item)
        carbon = item.child("carbon", CARBON_KEYS)
        location_ng = carbon.measure("location", _GRAMS, 0)
        yield Site(
            name=name,
            country=countries[0],
            country_basis=CountryBasis[basis.name],
            operator=item.name("operator"),
            owners=_owners(item),
            power_envelope_w=item.measure("power_envelope", _watts, 0),
            pue_ppm=pue_ppm,
            pue_source=pue_source,
            carbon_location_ng_per_kwh=location_ng,
            carbon_market_ng_per_kwh=carbon.measure("market", _GRAMS, location_ng),
            carbon_source=carbon.text("source"),
            energy_price_neur_per_kwh=item.measure("energy_price", _EUROS, 0),
        )


def _pue(item: Section) -> tuple[int, str]:
    if isinstance(item.body.get("pue"), Mapping):
        pue = item.child("pue", PUE_KEYS)
        return pue.measure("value", _FACTOR, PPM, minimum=PPM), pue.text("source")
    return item.measure("pue", _FACTOR, PPM, minimum=PPM), ""


def _owners(item: Section) -> dict[str, int]:
    names = tuple(item.text_map("owners", form=_WORD, items_max=1_000))
    owners = item.child("owners", Keys(names))
    shares = {name: owners.measure(name, _percent, 0) for name in names}
    total = sum(shares.values())
    if shares and total != PPM:
        found = format_scaled(total, PPM // 100)
        item.refuse("owners", f"the shares add up to {found} %, not 100 %", "correct the shares")
    return shares


def _zones(top: Section) -> Iterator[Zone]:
    for name, item in top.entries("zones", ZONE_KEYS):
        yield Zone(
            name=name,
            site=_required(item, "site"),
            state=item.word("state", ZoneState, ZoneState.OPEN),
        )


def _pools(top: Section, registry: Registry) -> Iterator[Pool]:
    for name, item in top.entries("pools", POOL_KEYS):
        machine_class = _required(item, "machine_class")
        registered = _in_registry(registry, machine_class)
        mode = item.word("mode", PoolMode, PoolMode.OWNED)
        if mode is PoolMode.DELEGATED and item.body.get("preflight") is not None:
            item.refuse("preflight", "in a delegated pool nobody knows its nodes", "leave it out")
        yield Pool(
            name=name,
            zone=_required(item, "zone"),
            engine=_required(item, "engine"),
            machine_class=registered.name if registered else machine_class,
            mode=mode,
            settings=item.text_map("settings", form=_WORD, items_max=64),
            preflight=_preflight(item),
            preemption=item.word("preemption", PreemptionScope, PreemptionScope.NONE),
        )


def _preflight(item: Section) -> Preflight | None:
    """Return a pool's check; `preflight: {}` is one with nothing but what must come out right."""
    if item.body.get("preflight") is None:
        return None
    wanted, usual = item.child("preflight", PREFLIGHT_KEYS), Preflight()
    us_max = wanted.integer("round_trip_us_max", 0, minimum=0, maximum=10**7)
    return Preflight(
        every_s=wanted.measure("every", parse_duration_s, usual.every_s, minimum=60),
        bytes_per_s_min=wanted.measure("rate_min", _rate, 0),
        round_trip_ns_max=us_max * 1000,
        size_bytes=wanted.measure(
            "size", parse_bytes, usual.size_bytes, minimum=1 << 16, maximum=1 << 30
        ),
        time_limit_s=wanted.measure(
            "time_limit", parse_duration_s, usual.time_limit_s, minimum=5, maximum=3600
        ),
    )


def _rate(written: str) -> int:
    """Read bytes a second, such as `1GB/s`."""
    return parse_bytes(written.removesuffix("/s"))


def _projects(top: Section) -> Iterator[Project]:
    for name, item in top.entries("projects", PROJECT_KEYS):
        quota = item.child("quota", QUOTA_KEYS)
        yield Project(
            name=name,
            organisation=_required(item, "organisation"),
            quota=Quota(
                cpu_milli=quota.measure("cpus", parse_cpu_milli, -1),
                memory_bytes=quota.measure("memory", parse_bytes, -1),
                accelerators=quota.integer("accelerators", -1, minimum=0, maximum=10**7),
                workloads=quota.integer("workloads", -1, minimum=0, maximum=10**7),
                stored_bytes=quota.measure("storage", parse_bytes, PROJECT_BYTES_MAX),
            ),
            budget_neur=item.measure("budget", _EUROS, -1),
            job_time_limit_s=item.measure("job_time_limit", parse_duration_s, 3600, minimum=1),
            rate=read_rate(item),
            allowance=read_allowance(item),
            webhook=read_webhook(item),
            per_user=read_user_rule(item),
            is_preemptible=item.flag("preemptible", default=True),
        )


def _price_books(top: Section, registry: Registry) -> Iterator[PriceBook]:
    for name, item in top.entries("prices", PRICE_KEYS):
        prices = tuple(price for word in PRICES for price in _prices(item, word, registry))
        if not prices:
            top.refuse(f"prices.{name}", "holds no price", f"known here: {', '.join(PRICES)}")
        yield PriceBook(
            name=name,
            effective_from_ns=item.measure("from", parse_time, 0),
            prices=prices,
            batch_ppm=item.measure("batch", _FACTOR, BATCH_FACTOR_PPM, maximum=PPM),
        )


def _prices(item: Section, word: str, registry: Registry) -> Iterator[Price]:
    value = item.body.get(word)
    if value is None:
        return
    meter, _ = PRICES[word]
    if not isinstance(value, Mapping):
        yield make_price(word, item.measure(word, _EUROS, 0))
        return
    subjects = tuple(item.text_map(word, form=_WORD, items_max=1_000))
    by_subject = item.child(word, Keys(subjects))
    for written in subjects:
        subject = "" if written == DEFAULT_SUBJECT else written
        registered = _in_registry(registry, subject) if meter is Meter.ACCELERATOR_MS else None
        yield make_price(
            word,
            by_subject.measure(written, _EUROS, 0),
            registered.name if registered else subject,
        )


def make_price(word: str, unit_price_neur: int, subject: str = "") -> Price:
    """Return the price for one of the words of `PRICES`, per its whole quantity.

    >>> make_price("cpu_hour", 20_000_000).per
    3600000000
    """
    meter, per = PRICES[word]
    return Price(
        sku=f"{word}:{subject}" if subject else word,
        meter=meter.value,
        unit_price_neur=unit_price_neur,
        per=per,
        subject=subject,
    )


def _aliases(top: Section) -> Iterator[Alias]:
    for name, item in top.entries("aliases", ALIAS_KEYS):
        names = tuple(item.text_map("targets", form=_WORD, items_max=ALIAS_TARGETS_MAX))
        targets = item.child("targets", Keys(names))
        weights = {
            each: targets.integer(each, 0, minimum=0, maximum=ALIAS_WEIGHT_MAX) for each in names
        }
        if not any(weights.values()):
            item.refuse("targets", "no target has a weight", "write for example `{my-model: 100}`")
        yield Alias(
            name=name,
            targets=weights,
            project=item.name("project"),
            deprecated_at_ns=item.measure("deprecated", parse_time, 0),
            sunset_at_ns=item.measure("sunset", parse_time, 0),
        )


def _required(item: Section, key: str) -> str:
    name = item.name(key)
    if not name:
        item.refuse(key, "is missing", f"write `{key}: NAME`")
    return name


def _check_references(
    top: Section, objects: Collection[DeclaredObject], known: Known, registry: Registry
) -> None:
    """Refuse the first name that leads nowhere; the control plane checks again when applying."""
    names: dict[ObjectKind, set[str]] = {kind: set(known.get(kind, ())) for kind in ObjectKind}
    for each in objects:
        names[kind_of(each)].add(each.name)
    for each in objects:
        for path, kind, name in _references(each):
            if name not in names[kind]:
                candidates = sorted(names[kind])
                if kind is ObjectKind.MACHINE_CLASS:
                    candidates = sorted({*candidates, *registry})
                hint = nearest(name, candidates) or f"declare it under {kind.value}s"
                top.refuse(path, f"there is no {kind.value.replace('_', ' ')} {name!r}", hint)


def _references(each: DeclaredObject) -> Iterator[tuple[str, ObjectKind, str]]:
    match each:
        case Site(name=name, operator=operator, owners=owners):
            if operator:
                yield f"sites.{name}.operator", ObjectKind.ORGANISATION, operator
            for owner in owners:
                yield f"sites.{name}.owners.{owner}", ObjectKind.ORGANISATION, owner
        case Zone(name=name, site=site):
            yield f"zones.{name}.site", ObjectKind.SITE, site
        case Pool(name=name, zone=zone, machine_class=machine_class):
            yield f"pools.{name}.zone", ObjectKind.ZONE, zone
            yield f"pools.{name}.machine_class", ObjectKind.MACHINE_CLASS, machine_class
        case Project(name=name, organisation=organisation):
            yield f"projects.{name}.organisation", ObjectKind.ORGANISATION, organisation
        case Alias(name=name, project=project) if project:
            yield f"aliases.{name}.project", ObjectKind.PROJECT, project
        case _:
            return
