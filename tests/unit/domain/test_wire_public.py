"""The public wire form: instants as RFC 3339, everything else as kept; reading takes both."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from moulin.domain.control import KeyWanted, WorkloadPage
from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import PriceBook
from moulin.domain.ids import StepId
from moulin.domain.observation import Observation, TaskPhase
from moulin.domain.wire import decode, encode, encode_public, is_instant, public_name

AT_NS = 1_700_000_000_000_000_001
AT = "2023-11-14T22:13:20.000000001Z"


@dataclass(frozen=True, kw_only=True)
class Span:
    start_ns: int
    task_cpu_ns: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Outer:
    spans: tuple[Span, ...]
    last: Span | None


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("at_ns", "at"),
        ("submitted_at_ns", "submitted_at"),
        ("now_ns", "now"),
        ("start_ns", "start"),
        ("end_ns", "end"),
        ("not_before_ns", "not_before"),
        ("effective_from_ns", "effective_from"),
        ("cpu_ns", "cpu_ns"),
        ("node_cpu_ns", "node_cpu_ns"),
        ("task_cpu_ns", "task_cpu_ns"),
        ("energy_mj", "energy_mj"),
        ("restart_ns", "restart_ns"),
    ],
)
def test_points_in_time_lose_their_unit_and_spans_keep_it(name, public):
    assert public_name(name) == public
    assert is_instant(name) == (name != public)


def test_instants_are_rfc3339_and_null_when_unset():
    seen = Observation(step=StepId("s"), phase=TaskPhase.RUNNING, at_ns=AT_NS, cpu_ns=5)
    public = encode_public(seen)
    assert (public["at"], public["started_at"], public["cpu_ns"]) == (AT, None, "5")
    assert decode(Observation, public) == decode(Observation, encode(seen)) == seen


def test_nested_values_and_mappings_keep_their_keys():
    outer = Outer(spans=(Span(start_ns=AT_NS, task_cpu_ns={"start_ns": 3}),), last=None)
    public = encode_public((outer,))[0]
    assert public == {"spans": [{"start": AT, "task_cpu_ns": {"start_ns": "3"}}], "last": None}
    assert decode(Outer, public) == outer


def test_a_person_may_write_any_offset_or_nothing():
    for text, expected in (
        ("2023-11-14T23:13:20.000000001+01:00", AT_NS),
        (str(AT_NS), AT_NS),
        (AT_NS, AT_NS),
        (None, 0),
    ):
        book = decode(PriceBook, {"name": "b", "effective_from": text})
        assert book.effective_from_ns == expected


@pytest.mark.parametrize("text", ["soon", "", "2023-13-01T00:00:00Z", "2023-11-14", True, 1.5])
def test_what_is_no_time_is_refused_with_its_place(text):
    with pytest.raises(InvalidSpec) as raised:
        decode(KeyWanted, {"name": "k", "expires_at": text})
    assert raised.value.details == {"path": "expires_at"}


def test_an_instant_given_in_both_forms_is_refused():
    with pytest.raises(InvalidSpec, match="twice"):
        decode(KeyWanted, {"name": "k", "expires_at": AT, "expires_at_ns": str(AT_NS)})


@pytest.mark.parametrize("at_ns", [-1, 10**30])
def test_impossible_instants_are_shown_not_hidden(at_ns):
    wanted = KeyWanted(name="k", expires_at_ns=at_ns)
    public = encode_public(wanted)
    assert public["expires_at"] == str(at_ns)
    assert decode(KeyWanted, public) == wanted


def test_an_empty_page():
    assert encode_public(WorkloadPage(items=())) == {"items": [], "next": ""}
