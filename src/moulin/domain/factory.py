"""What an operator declares in `factory.yaml`: the objects a factory is made of.

Each object is a frozen value with a `name`; names are unique per kind in the factory and are its
ids. Declared objects change only by an apply, as one event, never one by one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from moulin.domain.limits import Allowance, RateLimit, UserRule
from moulin.domain.objects import BATCH_FACTOR_PPM, PROJECT_BYTES_MAX
from moulin.domain.preflight import Preflight


class ObjectKind(StrEnum):
    """Kinds of declared objects, in the order in which they may refer to one another."""

    MACHINE_CLASS = "machine_class"
    ORGANISATION = "organisation"
    SITE = "site"
    ZONE = "zone"
    POOL = "pool"
    PROJECT = "project"
    PRICE_BOOK = "price_book"
    ALIAS = "alias"


class OrganisationRole(StrEnum):
    """What an organisation is to the factory; one organisation may hold several roles."""

    COORDINATOR = "coordinator"
    OPERATOR = "operator"
    ENERGY = "energy"
    NETWORK = "network"
    MODEL_LAB = "model_lab"
    INTEGRATOR = "integrator"
    CAPITAL = "capital"
    TENANT = "tenant"


class ZoneState(StrEnum):
    """Life of a zone; only OPEN accepts placements, DRAINING keeps what runs."""

    ANNOUNCED = "announced"
    BUILDING = "building"
    COMMISSIONING = "commissioning"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class CountryBasis(StrEnum):
    """How the country of a zone is known; only ASSERTED and ATTESTED satisfy a `where`."""

    ASSERTED = "asserted by the operator"
    ATTESTED = "attested"
    GUESSED = "guessed"


class PoolMode(StrEnum):
    """OWNED: Moulin places on nodes and devices. DELEGATED: it admits, the engine places."""

    OWNED = "owned"
    DELEGATED = "delegated"


class PreemptionScope(StrEnum):
    """Whose running work gives way to waiting work of a higher priority; NONE: nobody's.

    Members of a project choose priorities themselves, so ALL lets any project stop any other's work.
    """

    NONE = "none"
    PROJECT = "project"
    ALL = "all"


class EnergyClass(StrEnum):
    """Quality of an energy figure, best first (DESIGN rule 2)."""

    REVENUE_METER = "A"
    HARDWARE_COUNTER = "B"
    FITTED_MODEL = "C"
    SPECIFICATION_MODEL = "D"
    CONSTANT = "E"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineClass:
    """One kind of machine or accelerator.

    `tera_flops` maps a precision such as `fp8_dense` to a figure; a speed-up is never one number.
    `sources` maps a field name to where its figure comes from.
    """

    name: str
    title: str
    is_accelerator: bool = True
    architecture: str = ""
    memory_bytes: int = 0
    tera_flops: Mapping[str, int] = field(default_factory=dict)
    idle_mw: int = 0
    peak_mw: int = 0
    interconnect: str = ""
    devices_per_domain: int = 0
    lifecycle: str = "ga"
    sources: Mapping[str, str] = field(default_factory=dict)
    memory_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """Who pays or provides; `countries` restricts every workload of the organisation.

    `rate` and `allowance` bound the model calls of all its projects together; `webhook` is told of
    alerts that no project has an own one for.
    """

    name: str
    title: str = ""
    roles: tuple[OrganisationRole, ...] = (OrganisationRole.TENANT,)
    countries: tuple[str, ...] = ()
    rate: RateLimit = field(default_factory=RateLimit)
    allowance: Allowance = field(default_factory=Allowance)
    webhook: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place with power. `power_envelope_w` 0 means that none is stated.

    `pue_ppm` is power usage effectiveness in millionths; carbon intensities are ng CO2e per mJ
    scaled by 1000 to stay integers: `*_ng_per_kwh` in nanograms per kilowatt-hour.
    `owners` maps an organisation to its share in millionths; shares add up to one million.
    """

    name: str
    country: str
    country_basis: CountryBasis = CountryBasis.ASSERTED
    operator: str = ""
    owners: Mapping[str, int] = field(default_factory=dict)
    power_envelope_w: int = 0
    pue_ppm: int = 1_000_000
    pue_source: str = ""
    carbon_location_ng_per_kwh: int = 0
    carbon_market_ng_per_kwh: int = 0
    carbon_source: str = ""
    energy_price_neur_per_kwh: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """The part of a site where work is placed."""

    name: str
    site: str
    state: ZoneState = ZoneState.OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Machines of one class attached to one engine; `settings` are the engine's own words.

    With a `preflight` the nodes of a gang are checked together before it starts.
    `preemption` says whether jobs that run there may be stopped for others of a higher priority.
    """

    name: str
    zone: str
    engine: str
    machine_class: str
    mode: PoolMode = PoolMode.OWNED
    settings: Mapping[str, str] = field(default_factory=dict)
    preflight: Preflight | None = None
    preemption: PreemptionScope = PreemptionScope.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a project may hold at one time; -1 means no limit."""

    cpu_milli: int = -1
    memory_bytes: int = -1
    accelerators: int = -1
    workloads: int = -1
    stored_bytes: int = PROJECT_BYTES_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A grouping of work inside an organisation; `budget_neur` -1 means no limit.

    The budget is for all work and for ever; `rate` and `allowance` bound model calls, `per_user`
    those of each of its users. `webhook` is told when an allowance of the project, of one of its
    keys or users reaches an alert. A project that is not preemptible keeps what it runs, also in a
    pool that allows preemption.
    """

    name: str
    organisation: str
    quota: Quota = field(default_factory=Quota)
    budget_neur: int = -1
    job_time_limit_s: int = 3600
    rate: RateLimit = field(default_factory=RateLimit)
    allowance: Allowance = field(default_factory=Allowance)
    webhook: str = ""
    per_user: UserRule = field(default_factory=UserRule)
    is_preemptible: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Money for a quantity: `unit_price_neur` for `per` units of the meter.

    `meter` is one of `moulin.domain.usage.Meter`; `subject` narrows it (a model, a machine
    class), the empty subject is the default.
    """

    sku: str
    meter: str
    unit_price_neur: int
    per: int
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBook:
    """Prices in force from `effective_from_ns`; the latest one in force at a usage's start applies.

    Lines of a batch pay `batch_ppm` of them.
    """

    name: str
    effective_from_ns: int
    prices: tuple[Price, ...] = ()
    currency: str = "EUR"
    batch_ppm: int = BATCH_FACTOR_PPM


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A name under which clients reach one or several endpoints.

    `targets` maps names of endpoints to weights; they need not exist yet. `project` restricts the
    name to keys of that project. From `deprecated_at_ns` on answers warn of the end, which comes at
    `sunset_at_ns`; 0 is never.
    """

    name: str
    targets: Mapping[str, int]
    project: str = ""
    deprecated_at_ns: int = 0
    sunset_at_ns: int = 0


DeclaredObject = MachineClass | Organisation | Site | Zone | Pool | Project | PriceBook | Alias

TYPE_BY_KIND: Final[Mapping[ObjectKind, type]] = {
    ObjectKind.MACHINE_CLASS: MachineClass,
    ObjectKind.ORGANISATION: Organisation,
    ObjectKind.SITE: Site,
    ObjectKind.ZONE: Zone,
    ObjectKind.POOL: Pool,
    ObjectKind.PROJECT: Project,
    ObjectKind.PRICE_BOOK: PriceBook,
    ObjectKind.ALIAS: Alias,
}


def webhook_of(project: Project | None, organisation: Organisation | None) -> str:
    """Return where alerts go: the project's address, else its organisation's; empty without any."""
    return (project.webhook if project else "") or (organisation.webhook if organisation else "")


def kind_of(declared: object) -> ObjectKind:
    """Return the kind of a declared object; raises `TypeError` for any other value (a bug)."""
    for kind, value_type in TYPE_BY_KIND.items():
        if isinstance(declared, value_type):
            return kind
    raise TypeError(f"{type(declared).__name__} is not a declared object")
