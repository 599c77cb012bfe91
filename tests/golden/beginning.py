"""How every golden log begins: a factory, a key and a node."""

from typing import Final

from moulin.domain.events import (
    EpochOpened,
    FactoryApplied,
    KeyCreated,
    NodeJoined,
    ObjectChange,
    Payload,
)
from moulin.domain.factory import (
    CountryBasis,
    DeclaredObject,
    MachineClass,
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
from moulin.domain.ids import (
    KeyId,
    NodeId,
    OrganisationId,
    ProjectId,
)
from moulin.domain.observation import NodeCapacity
from moulin.domain.principal import ApiKey, Role

START_NS: Final = 1_790_000_000_000_000_000
UNI, LAB = OrganisationId("uni"), ProjectId("lab")
NODE = NodeId("node-1")


def beginning() -> list[Payload]:
    return [
        EpochOpened(epoch=1, boot_id="boot-1", version="0.1.0"),
        FactoryApplied(
            managed_by="factory.yaml",
            changes=tuple(
                ObjectChange(kind=kind_of(each), name=each.name, value=each) for each in factory()
            ),
        ),
        KeyCreated(key=member_key()),
        NodeJoined(pool="pool", capacity=capacity("boot-1")),
    ]


def factory() -> list[DeclaredObject]:
    return [
        MachineClass(
            name="cpu",
            title="this machine",
            is_accelerator=False,
            memory_bytes=2**34,
            tera_flops={"fp32": 1},
            idle_mw=20_000,
            peak_mw=90_000,
            sources={"idle_mw": "measured"},
        ),
        Organisation(name="uni", title="Université", roles=(OrganisationRole.TENANT,)),
        Site(
            name="campus",
            country="FR",
            country_basis=CountryBasis.ATTESTED,
            operator="uni",
            owners={"uni": 1_000_000},
            power_envelope_w=10_000,
            pue_ppm=1_200_000,
            carbon_location_ng_per_kwh=56 * 10**9,
            energy_price_neur_per_kwh=180_000_000,
        ),
        Zone(name="hall", site="campus"),
        Zone(name="annex", site="campus", state=ZoneState.BUILDING),
        Pool(name="pool", zone="hall", engine="local", machine_class="cpu", settings={"a": "b"}),
        Project(
            name="lab",
            organisation="uni",
            quota=Quota(cpu_milli=8_000, workloads=10),
            budget_neur=2**60,
        ),
        PriceBook(
            name="2026",
            effective_from_ns=START_NS,
            prices=(Price(sku="cpu", meter="cpu_milli_ms", unit_price_neur=7, per=1000),),
        ),
    ]


def member_key() -> ApiKey:
    return ApiKey(
        id=KeyId("key_member"),
        name="member",
        role=Role.MEMBER,
        organisation=UNI,
        project=LAB,
        digest="00" * 32,
        models=("smollm2",),
        countries=("FR",),
        created_at_ns=START_NS,
    )


def capacity(boot_id: str) -> NodeCapacity:
    return NodeCapacity(
        node=NODE,
        cpu_milli=4_000,
        memory_bytes=2**33,
        machine_class="cpu",
        boot_id=boot_id,
        cpu_ids=(0, 1, 2, 3),
        idle_mw=20_000,
        peak_mw=90_000,
        power_source="stated",
    )
