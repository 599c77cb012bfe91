"""What a seed's factory is made of and what its tenants ask for; values only, nothing happens here."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moulin.domain.control import RolloutWanted
from moulin.domain.factory import (
    CountryBasis,
    DeclaredObject,
    Organisation,
    Pool,
    Price,
    PriceBook,
    Project,
    Quota,
    Site,
    Zone,
    ZoneState,
)
from moulin.domain.ids import KeyId, NodeId, OrganisationId, ProjectId
from moulin.domain.observation import NodeCapacity
from moulin.domain.principal import ApiKey, Principal, Role
from moulin.domain.workload import (
    After,
    AfterWhen,
    EndpointSpec,
    JobArray,
    Resources,
    Retry,
    Scaling,
    TaskTemplate,
    When,
    Where,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.engines.simulated.world import (
    DURATION_VARIABLE,
    EXIT_VARIABLE,
    IGNORES_TERM_VARIABLE,
)
from tests.simulation.world import START_NS

GB = 10**9
OPERATOR = Principal(
    key=KeyId("key_operator"),
    name="operator",
    role=Role.OPERATOR,
    organisation=OrganisationId(""),
    project=ProjectId(""),
)
ORGANISATION_BY_PROJECT = {"web": "acme", "lab": "acme", "care": "medic"}
SITES = (
    Site(
        name="lyon",
        country="FR",
        pue_ppm=1_250_000,
        energy_price_neur_per_kwh=180_000_000,
        carbon_location_ng_per_kwh=56 * 10**9,
    ),
    Site(name="lulea", country="SE", country_basis=CountryBasis.ATTESTED, pue_ppm=1_070_001),
    Site(name="austin", country="US"),
    Site(name="rumour", country="FR", country_basis=CountryBasis.GUESSED),
)
STATES = (*[ZoneState.OPEN] * 5, ZoneState.BUILDING, ZoneState.DRAINING, ZoneState.CLOSED)
MODELS = ("tiny", "base")


@dataclass(frozen=True, slots=True)
class Scenario:
    """The declared objects a seed begins with and each pool's nodes."""

    objects: tuple[DeclaredObject, ...]
    nodes: dict[str, tuple[NodeCapacity, ...]]


def scenario(rng: random.Random) -> Scenario:
    """Return a small factory: 2 to 4 sites with a zone or two each, one pool of 1 to 3 nodes a zone."""
    sites = [_site(rng, site) for site in SITES if site.name == "lyon" or rng.random() < 0.6]
    zones: list[Zone] = []
    for site in sites:
        names = [site.name + "-a", site.name + "-b"] if rng.random() < 0.3 else [site.name + "-a"]
        zones += [Zone(name=name, site=site.name, state=rng.choice(STATES)) for name in names]
    zones[0] = replace(zones[0], state=ZoneState.OPEN)
    pools = [Pool(name="p-" + z.name, zone=z.name, engine="sim", machine_class="m") for z in zones]
    objects: tuple[DeclaredObject, ...] = (
        Organisation(name="acme"),
        Organisation(name="medic", countries=rng.choice([("FR", "SE"), ("FR",), ("FR", "US")])),
        *sites,
        *zones,
        *pools,
        *(_project(rng, name) for name in ORGANISATION_BY_PROJECT),
        price_book("base", 0, 1),
    )
    return Scenario(objects, {pool.name: _nodes(rng, pool.name) for pool in pools})


def price_book(name: str, effective_from_ns: int, factor: int) -> PriceBook:
    """Return prices that do not divide evenly; some depend on the accelerator or the model."""
    prices = (
        Price(sku="cpu", meter="cpu_milli_ms", unit_price_neur=10_007 * factor, per=1_000_000),
        Price(sku="memory", meter="memory_mb_ms", unit_price_neur=factor, per=1_000),
        Price(sku="gpu", meter="accelerator_ms", unit_price_neur=53 * factor, per=1),
        Price(sku="h100", meter="accelerator_ms", unit_price_neur=97, per=1, subject="h100"),
        Price(sku="in", meter="tokens_input", unit_price_neur=7 * factor, per=3),
        Price(sku="out", meter="tokens_output", unit_price_neur=101 * factor, per=1),
        Price(sku="out-base", meter="tokens_output", unit_price_neur=303, per=1, subject="base"),
    )
    return PriceBook(name=name, effective_from_ns=effective_from_ns, prices=prices)


def changed(rng: random.Random, objects: Sequence[DeclaredObject]) -> tuple[DeclaredObject, ...]:
    """Return the objects with one of them changed as an operator might."""
    wanted = list(objects)
    place = rng.randrange(len(wanted))
    one = wanted[place]
    match one:
        case Zone():
            wanted[place] = replace(one, state=rng.choice(STATES))
        case Project():
            fresh = _project(rng, one.name)
            is_quota = rng.random() < 0.5
            wanted[place] = (
                replace(one, quota=fresh.quota)
                if is_quota
                else replace(one, budget_neur=fresh.budget_neur)
            )
        case Site():
            wanted[place] = replace(one, power_envelope_w=_site(rng, one).power_envelope_w)
        case Organisation(name="medic"):
            wanted[place] = replace(one, countries=rng.choice([("FR", "SE"), ("FR",), ()]))
        case _:
            return changed(rng, objects)
    return tuple(wanted)


def workload_spec(rng: random.Random, zones: Sequence[str]) -> WorkloadSpec:
    """Return a random job, endpoint or lease."""
    dice = rng.random()
    if dice < 0.14:
        return _endpoint(rng, zones)
    if dice < 0.2:
        return _lease(rng, zones)
    return _job(rng, zones)


def steered(rng: random.Random, spec: WorkloadSpec, others: Sequence[str]) -> WorkloadSpec:
    """Return a job that may be an array, wait for one of `others`, be held, or have alternatives."""
    if spec.kind is not WorkloadKind.JOB:
        return spec
    array: JobArray | None = None
    after: tuple[After, ...] = ()
    if rng.random() < 0.25:
        array = JobArray(
            size=rng.randint(2, 5), first=rng.choice([0, 7]), at_most=rng.choice([0, 1, 2])
        )
    if others and rng.random() < 0.25:
        when = rng.choice(list(AfterWhen))
        after = (After(workload=rng.choice(others), when=when),)
    alternatives = (Resources(cpu_milli=500, memory_bytes=GB),) if rng.random() < 0.15 else ()
    return replace(
        spec,
        array=array,
        after=after,
        alternatives=alternatives,
        is_held=rng.random() < 0.08,
    )


def public_endpoint(rng: random.Random) -> WorkloadSpec:
    """Return an endpoint that every key may use."""
    spec = EndpointSpec(
        model=rng.choice(MODELS),
        replicas=rng.choice([1, 2]),
        is_public=True,
        drain_s=rng.choice([10, 120]),
        scaling=scaling(rng) if rng.random() < 0.5 else None,
    )
    # Some replicas have less time than the story, so that others follow them.
    limit_s = 40 if spec.drain_s == 10 or spec.replicas == 2 else 0
    return replace(_endpoint(rng, ()), endpoint=spec, where=Where(), time_limit_s=limit_s)


def scaling(rng: random.Random) -> Scaling:
    """Return how load moves an endpoint's replicas; windows as short as the story is."""
    return Scaling(
        replicas_min=rng.choice([0, 0, 1]),
        replicas_max=rng.choice([2, 3]),
        target_requests=1,
        target_queue_s=rng.choice([2, 5]),
        stabilise_s=rng.choice([10, 30]),
        idle_s=rng.choice([5, 30]),
        cold_start_s=60,
    )


def rollout(rng: random.Random) -> RolloutWanted:
    """Return what an endpoint shall serve from now on."""
    dice = rng.random()
    if dice < 0.35:
        return RolloutWanted(is_back=True)
    if dice < 0.7:
        return RolloutWanted(model=rng.choice(MODELS))
    return RolloutWanted(parallel_requests=rng.choice([1, 4]), cpu_milli=rng.choice([500, 2_000]))


def api_key(project: str, name: str, digest: str) -> ApiKey:
    """Return an inference key."""
    return ApiKey(
        id=KeyId(name),
        name=name,
        role=Role.INFERENCE,
        organisation=OrganisationId(ORGANISATION_BY_PROJECT[project]),
        project=ProjectId(project),
        digest=digest,
        created_at_ns=START_NS,
    )


def member(project: str) -> Principal:
    """Return who asks for a project."""
    return Principal(
        key=KeyId(f"key_{project}"),
        name=f"ada of {project}",
        role=Role.MEMBER,
        organisation=OrganisationId(ORGANISATION_BY_PROJECT[project]),
        project=ProjectId(project),
    )


def _site(rng: random.Random, site: Site) -> Site:
    return replace(site, power_envelope_w=rng.choice([0, 0, 0, 1600, 2600]))


def _project(rng: random.Random, name: str) -> Project:
    quota = Quota(
        cpu_milli=rng.choice([-1, -1, 6_000, 12_000]),
        memory_bytes=rng.choice([-1, -1, -1, 12 * GB]),
        accelerators=rng.choice([-1, -1, -1, 4]),
        workloads=rng.choice([-1, -1, 3, 5]),
    )
    budget_neur = rng.choice([-1, -1, 2_000_000, 6_000_000, 40_000_000])
    return Project(
        name=name,
        organisation=ORGANISATION_BY_PROJECT[name],
        quota=quota,
        budget_neur=budget_neur,
        job_time_limit_s=rng.choice([20, 40]),
    )


def _nodes(rng: random.Random, pool: str) -> tuple[NodeCapacity, ...]:
    devices = rng.choice([0, 2, 4])
    return tuple(
        NodeCapacity(
            node=NodeId(f"{pool}-{index}"),
            cpu_milli=rng.choice([4_000, 4_000, 8_000]),
            memory_bytes=rng.choice([8, 16]) * GB,
            machine_class="m",
            accelerators=devices,
            accelerator_class="h100" if devices else "",
            boot_id=f"{pool}-{index}-boot-0",
            idle_mw=100_000,
            peak_mw=400_000 + 150_000 * devices,
            power_source="stated",
        )
        for index in range(rng.randint(2, 3))
    )


def _where(rng: random.Random, zones: Sequence[str]) -> Where:
    return Where(
        countries=rng.choice([*[()] * 6, ("FR",), ("FR",), ("SE",), ("FR", "US")]),
        zones=(rng.choice(zones),) if zones and rng.random() < 0.1 else (),
    )


def _resources(rng: random.Random) -> Resources:
    accelerators = rng.choice([*[0] * 6, 1, 2])
    return Resources(
        cpu_milli=rng.choice([500, 1_000, 1_000, 2_000, 3_000]),
        memory_bytes=rng.choice([1, 1, 2, 4]) * GB,
        accelerators=accelerators,
        accelerator_class="h100" if accelerators and rng.random() < 0.5 else "",
    )


def _program(rng: random.Random, duration_s: float | None) -> TaskTemplate:
    env = {EXIT_VARIABLE: rng.choice(["0", "0", "0", "1", "3"])}
    if duration_s is not None:
        env[DURATION_VARIABLE] = f"{duration_s:.1f}" if rng.random() < 0.97 else "soon"
    if rng.random() < 0.15:
        env[IGNORES_TERM_VARIABLE] = "1"
    return TaskTemplate(command=("work",), env=env)


def _job(rng: random.Random, zones: Sequence[str]) -> WorkloadSpec:
    is_endless = rng.random() < 0.15
    return WorkloadSpec(
        kind=WorkloadKind.JOB,
        name="job",
        resources=_resources(rng),
        nodes=rng.choice([*[1] * 6, 2, 2, 3]),
        task=_program(rng, None if is_endless else rng.uniform(0.2, 30.0)),
        where=_where(rng, zones),
        when=When(deadline_s=rng.choice([0, 0, 0, 0, 15, 60])),
        retry=Retry(attempts_max=rng.choice([1, 1, 2, 3]), backoff_s=rng.choice([0, 1, 4])),
        time_limit_s=rng.choice([0, 5, 20, 60]),
        priority=rng.choice([10, 50, 50, 90]),
        stop_grace_s=rng.choice([0, 2, 10]),
    )


def _lease(rng: random.Random, zones: Sequence[str]) -> WorkloadSpec:
    return replace(
        _job(rng, zones),
        kind=WorkloadKind.LEASE,
        name="lease",
        resources=Resources(cpu_milli=1_000, memory_bytes=GB),
        nodes=rng.choice([1, 1, 2]),
        time_limit_s=rng.choice([10, 40]),
    )


def _endpoint(rng: random.Random, zones: Sequence[str]) -> WorkloadSpec:
    spec = EndpointSpec(
        model=rng.choice(MODELS),
        replicas=rng.choice([1, 1, 2]),
        is_public=rng.random() < 0.7,
        drain_s=rng.choice([0, 10, 120]),
        scaling=scaling(rng) if rng.random() < 0.4 else None,
    )
    return WorkloadSpec(
        kind=WorkloadKind.ENDPOINT,
        name=rng.choice(["chat", spec.model]),
        resources=Resources(cpu_milli=1_000, memory_bytes=GB),
        endpoint=spec,
        where=_where(rng, zones),
        retry=Retry(backoff_s=rng.choice([0, 1, 4])),
        stop_grace_s=2,
    )
