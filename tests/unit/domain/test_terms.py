"""Stages from days, and what keeps a model from being deployed."""

from datetime import UTC, datetime

import pytest

from moulin.domain.reasons import ReasonCode, sentence
from moulin.domain.terms import LicenceAcceptance, Lifecycle, ModelTerms, not_served

LIFE = Lifecycle(
    active_from="2026-02-01",
    deprecated_from="2026-06-01",
    retired_from="2026-09-01",
    successor="newer",
)


def at(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("moment", "stage"),
    [
        ("2026-01-31T23:59:59", "preview"),
        ("2026-02-01T00:00:00", "active"),
        ("2026-05-31T23:59:59", "active"),
        ("2026-06-01T00:00:00", "deprecated"),
        ("2026-09-01T00:00:00", "retired"),
    ],
)
def test_a_stage_begins_with_its_day(moment, stage):
    assert LIFE.stage(at(moment)) == stage


def test_without_days_a_model_is_active():
    assert Lifecycle().stage(0) == "active"


def test_a_retired_model_names_its_successor():
    found = not_served(ModelTerms(model="old", lifecycle=LIFE), "uni", {}, at("2026-10-01"))
    assert found
    assert found.code is ReasonCode.MODEL_RETIRED
    assert sentence(found) == "old was retired on 2026-09-01; its successor: newer"


@pytest.mark.parametrize("day", ["2026-01-01", "2026-03-01", "2026-07-01"])
def test_any_other_stage_is_served(day):
    assert not_served(ModelTerms(model="m", lifecycle=LIFE), "uni", {}, at(day)) is None


def test_terms_are_accepted_by_each_organisation_for_itself():
    terms = ModelTerms(model="m", licence="gemma", licence_url="https://terms")
    accepted = LicenceAcceptance(licence="gemma", organisation="uni", by="ada", at_ns=1)
    acceptances = {("uni", "gemma"): accepted}
    assert not_served(terms, "uni", acceptances, 1) is None
    refused = not_served(terms, "bank", acceptances, 1)
    assert refused
    assert refused.code is ReasonCode.LICENCE_NOT_ACCEPTED
    assert "organisation bank; its terms: https://terms" in sentence(refused)
