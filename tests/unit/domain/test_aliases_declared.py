"""Aliases in operator files, and fallbacks in job files."""

from typing import Any

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import Alias, ObjectKind
from moulin.domain.factoryfile import parse_factory
from moulin.domain.jobfile import parse_job

PROJECTS = {ObjectKind.PROJECT: ["lab"]}


def parse(body: Any) -> Any:
    return parse_factory({"aliases": {"chat": body}}, registry={}, known=PROJECTS)


def test_an_alias_with_everything() -> None:
    body = {
        "targets": {"old": 95, "new": "5"},
        "project": "lab",
        "deprecated": "2023-11-14T22:13:20Z",
        "sunset": "2023-11-14T22:13:21Z",
    }
    assert parse(body) == (
        Alias(
            name="chat",
            targets={"old": 95, "new": 5},
            project="lab",
            deprecated_at_ns=1_700_000_000 * 10**9,
            sunset_at_ns=1_700_000_001 * 10**9,
        ),
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "no target has a weight"),
        ({"targets": {"old": 0}}, "no target has a weight"),
        ({"targets": {"old": -1}}, "targets.old"),
        ({"targets": {f"m{n}": 1 for n in range(17)}}, "at most 16"),
        ({"targets": {"old": 1}, "project": "attic"}, "there is no project 'attic'"),
        ({"targets": {"old": 1}, "sunset": "soon"}, "sunset"),
        ({"targets": {"old": 1}, "weights": {}}, "unknown key"),
    ],
)
def test_wrong_aliases(body: Any, message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse(body)
    assert message in caught.value.message


def test_an_endpoint_names_its_fallbacks() -> None:
    body = {"kind": "endpoint", "name": "big", "model": "any", "fallbacks": ["mid", "small"]}
    endpoint = parse_job(body, origin="a file").endpoint
    assert endpoint is not None
    assert endpoint.fallbacks == ("mid", "small")


@pytest.mark.parametrize("fallbacks", [["a b"], [f"m{n}" for n in range(9)], "x" * 80])
def test_wrong_fallbacks(fallbacks: Any) -> None:
    body = {"kind": "endpoint", "name": "big", "model": "any", "fallbacks": fallbacks}
    with pytest.raises(InvalidSpec):
        parse_job(body, origin="a file")
