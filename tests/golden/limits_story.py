"""Limits in events: of a key that is replaced and alerted about, and of the users of a project."""

from dataclasses import replace
from typing import Final

from moulin.domain.events import (
    FactoryApplied,
    KeyCreated,
    KeyUpdated,
    LicenceAccepted,
    ObjectChange,
    Payload,
)
from moulin.domain.factory import ObjectKind, Organisation, Project
from moulin.domain.gateway_events import (
    AlertSettled,
    AllowanceAlerted,
    AllowanceGranted,
    AllowanceReturned,
    GatewayEpochClosed,
    GatewayEpochOpened,
    JournalRecorded,
)
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.limits import Allowance, Period, RateLimit, UserNames, UserRule
from moulin.domain.principal import ApiKey, Role
from moulin.domain.snapshot import JournalKind, JournalRecord

CREATED_NS: Final = 1_760_000_000_000_000_000
LATER_NS: Final = CREATED_NS + 86_400 * 10**9
ADA: Final = "project_user:lab/usr_ada#eur"
EUROS: Final = "key:key_course#eur"


def limits() -> list[Payload]:
    """A key's budget over a rotation and an alert."""
    key = course_key()
    record = JournalRecord(
        sequence=1,
        kind=JournalKind.BEGIN,
        request="req_1",
        at_ns=LATER_NS,
        organisation="uni",
        project="lab",
        key="key_course2",
        model="smollm2",
        tokens_input=10,
        tokens_output=100,
        amount_neur=900,
    )
    end = replace(record, sequence=2, kind=JournalKind.END, amount_neur=850, outcome="completed")
    return [
        FactoryApplied(
            managed_by="factory.yaml",
            changes=(ObjectChange(kind=ObjectKind.ORGANISATION, name="uni", value=limited()),),
        ),
        KeyCreated(key=key),
        KeyCreated(
            key=replace(key, id=KeyId("key_course2"), digest="22" * 32, origin="key_course")
        ),
        KeyUpdated(key=replace(key, expires_at_ns=LATER_NS)),
        GatewayEpochOpened(gateway="gw", gateway_epoch=1),
        AllowanceGranted(gateway="gw", gateway_epoch=1, allowance=EUROS, amount=1000),
        JournalRecorded(gateway="gw", gateway_epoch=1, through_sequence=2, records=(record, end)),
        AllowanceReturned(gateway="gw", gateway_epoch=1, allowance=EUROS, amount=150),
        AllowanceAlerted(
            allowance=EUROS,
            threshold_ppm=800_000,
            used=850,
            limit=1000,
            start_ns=CREATED_NS,
            has_webhook=True,
        ),
        AlertSettled(alert=13, is_delivered=True, attempts=2),
        GatewayEpochClosed(gateway="gw", gateway_epoch=1),
    ]


def users() -> list[Payload]:
    """A project's users are limited, and one of them asks through a key that limits them too."""
    rule = UserRule(
        is_counted=True,
        names=UserNames.STORED,
        allowance=Allowance(amount_neur=2000, period=Period.MONTH, alerts_ppm=(500_000,)),
    )
    project = Project(name="lab", organisation="uni", per_user=rule)
    key = replace(course_key(), per_user=Allowance(tokens=10_000, period=Period.DAY))
    record = JournalRecord(
        sequence=1,
        kind=JournalKind.BEGIN,
        request="req_1",
        at_ns=LATER_NS,
        organisation="uni",
        project="lab",
        key="key_course",
        model="smollm2",
        tokens_input=10,
        tokens_output=100,
        amount_neur=1900,
        user="usr_ada",
    )
    end = replace(record, sequence=2, kind=JournalKind.END, amount_neur=1500, outcome="completed")
    return [
        FactoryApplied(
            managed_by="factory.yaml",
            changes=(ObjectChange(kind=ObjectKind.PROJECT, name="lab", value=project),),
        ),
        KeyCreated(key=key),
        GatewayEpochOpened(gateway="gw", gateway_epoch=1),
        AllowanceGranted(gateway="gw", gateway_epoch=1, allowance=ADA, amount=1900),
        JournalRecorded(gateway="gw", gateway_epoch=1, through_sequence=2, records=(record, end)),
        AllowanceReturned(gateway="gw", gateway_epoch=1, allowance=ADA, amount=400, is_closed=True),
        AllowanceAlerted(
            allowance=ADA, threshold_ppm=500_000, used=1500, limit=2000, start_ns=CREATED_NS
        ),
        GatewayEpochClosed(gateway="gw", gateway_epoch=1),
    ]


def limited() -> Organisation:
    """The organisation with a quota for all its projects and an address for alerts."""
    return Organisation(
        name="uni",
        rate=RateLimit(requests_per_minute=600, concurrency=50),
        allowance=Allowance(tokens=10**9, period=Period.WEEK),
        webhook="https://alerts.example.org/moulin",
    )


def course_key() -> ApiKey:
    """A key with every kind of limit."""
    return ApiKey(
        id=KeyId("key_course"),
        name="course",
        role=Role.INFERENCE,
        organisation=OrganisationId("uni"),
        project=ProjectId("lab"),
        digest="11" * 32,
        created_at_ns=CREATED_NS,
        labels={"team": "biology"},
        rate=RateLimit(requests_per_minute=60, tokens_per_minute=20_000),
        allowance=Allowance(amount_neur=1000, period=Period.MONTH, alerts_ppm=(800_000,)),
    )


def licence() -> list[Payload]:
    """A licence accepted before its model is deployed."""
    return [LicenceAccepted(licence="gemma", model="gemma-3-1b-it", by="ada")]
