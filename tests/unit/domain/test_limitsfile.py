"""Limits as operators write them: amounts, fractions, addresses, and what is refused with its path."""

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import Organisation, Project
from moulin.domain.factoryfile import parse_factory
from moulin.domain.limits import Allowance, Period, RateLimit, UserNames, UserRule
from moulin.domain.limitsfile import parse_count, parse_fraction_ppm


def parsed(organisation: dict[str, object], project: dict[str, object]) -> dict[str, object]:
    body = {
        "organisations": {"uni": organisation},
        "projects": {"lab": {"organisation": "uni", **project}},
    }
    objects = parse_factory(body, registry={})
    return {type(each).__name__: each for each in objects}


def test_limits_of_an_organisation_and_a_project() -> None:
    found = parsed(
        {
            "limits": {"requests_per_minute": 600, "tokens_per_minute": "2M", "concurrency": 50},
            "webhook": "https://alerts.example.org:8443/moulin?to=ops",
        },
        {
            "allowance": {
                "euros": "12.50",
                "tokens": "50M",
                "per": "week",
                "alerts": ["100%", "80%"],
            }
        },
    )
    organisation, project = found["Organisation"], found["Project"]
    assert isinstance(organisation, Organisation)
    assert isinstance(project, Project)
    assert organisation.rate == RateLimit(
        requests_per_minute=600, tokens_per_minute=2_000_000, concurrency=50
    )
    assert organisation.webhook == "https://alerts.example.org:8443/moulin?to=ops"
    assert project.allowance == Allowance(
        amount_neur=12_500_000_000,
        tokens=50_000_000,
        period=Period.WEEK,
        alerts_ppm=(800_000, 1_000_000),
    )
    assert not project.rate.is_set


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        (None, UserRule()),
        ({}, UserRule(is_counted=True)),
        (
            {"euros": "2.00", "per": "month", "names": "stored", "alerts": ["50%"]},
            UserRule(
                is_counted=True,
                names=UserNames.STORED,
                allowance=Allowance(
                    amount_neur=2_000_000_000, period=Period.MONTH, alerts_ppm=(500_000,)
                ),
            ),
        ),
    ],
)
def test_what_each_user_of_a_project_may_use(written: object, rule: UserRule) -> None:
    project = parsed({}, {} if written is None else {"per_user": written})["Project"]
    assert isinstance(project, Project)
    assert project.per_user == rule


@pytest.mark.parametrize(
    ("project", "path"),
    [
        ({"per_user": {"names": "plain"}}, "projects.lab.per_user.names"),
        ({"per_user": {"budget": 5}}, "projects.lab.per_user.budget"),
        ({"limits": {"requests": 5}}, "projects.lab.limits.requests"),
        ({"limits": {"concurrency": 0}}, "projects.lab.limits.concurrency"),
        ({"limits": {"tokens_per_minute": "fast"}}, "projects.lab.limits.tokens_per_minute"),
        ({"allowance": {"per": "year"}}, "projects.lab.allowance.per"),
        ({"allowance": {"alerts": ["half"]}}, "projects.lab.allowance.alerts.0"),
        ({"allowance": {"euros": -1}}, "projects.lab.allowance.euros"),
    ],
)
def test_what_cannot_be_is_refused_with_its_path(project: dict[str, object], path: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parsed({}, project)
    assert refused.value.details["path"] == path


@pytest.mark.parametrize(
    "url",
    [
        "alerts.example.org",
        "ftp://alerts.example.org/",
        "file:///etc/passwd",
        "https://",
        "https://user:secret@alerts.example.org/",
        "https://alerts.example.org:99999/",
        "https://alerts.example.org/a b",
        "https://alerts.example.org/\r\nx: y",
        "https://alerts.example.org/#part",
    ],
)
def test_addresses_that_are_never_called(url: str) -> None:
    with pytest.raises(InvalidSpec):
        parsed({"webhook": url}, {})


def test_counts_and_fractions() -> None:
    assert [parse_count(text) for text in ("600", "200k", "1 G")] == [600, 200_000, 10**9]
    assert parse_fraction_ppm("5 %") == 50_000
    for wrong in ("1.5k", "-1", "", "9" * 20):
        with pytest.raises(InvalidSpec):
            parse_count(wrong)
    for wrong in ("0%", "80", "80.5%"):
        with pytest.raises(InvalidSpec):
            parse_fraction_ppm(wrong)
