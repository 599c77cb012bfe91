"""The JSON form of values: what is written, what is read back, what is refused and where."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import EnergyClass
from moulin.domain.ids import NodeId, StepId
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.snapshot import (
    Grant,
    JournalKind,
    JournalRecord,
    KeyView,
    SyncReply,
    SyncRequest,
    Want,
)
from moulin.domain.usage import NodeAllocation, NodeReading, Receipt
from moulin.domain.wire import decode, encode
from moulin.domain.workload import WorkloadKind, WorkloadSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    count: int = 0
    ratio: float = 0.0
    salt: bytes = b""
    is_open: bool = False
    held_mj: Mapping[str, int] = field(default_factory=dict)
    by_kind: Mapping[WorkloadKind, int] = field(default_factory=dict)
    limit_neur: int | None = None
    anything: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambiguous:
    value: int | str


def test_wide_integers_are_text_and_are_read_from_text_or_number() -> None:
    record = JournalRecord(
        sequence=1, kind=JournalKind.BEGIN, request="req_1", at_ns=2**62, amount_neur=2**80
    )
    data = encode(record)
    assert data["at_ns"] == str(2**62)
    assert data["amount_neur"] == str(2**80)
    assert data["sequence"] == 1
    assert data["kind"] == "begin"
    assert decode(JournalRecord, data) == record
    assert decode(JournalRecord, {**data, "at_ns": 2**62}) == record


def test_an_integer_beyond_the_safe_range_becomes_text_in_any_field() -> None:
    assert encode(Sample(count=2**53))["count"] == str(2**53)
    assert decode(Sample, {"count": str(2**53)}).count == 2**53
    assert encode(Sample(count=2**53 - 1))["count"] == 2**53 - 1


def test_every_shape_comes_back_as_it_was() -> None:
    sample = Sample(
        count=-3,
        ratio=0.5,
        salt=b"\x00\xff",
        is_open=True,
        held_mj={"a": 2**70},
        by_kind={WorkloadKind.JOB: 2},
        limit_neur=5,
        anything={"a": [1, None]},
    )
    data = encode(sample)
    assert data["salt"] == "AP8="
    assert data["held_mj"] == {"a": str(2**70)}
    assert data["by_kind"] == {"job": 2}
    assert data["limit_neur"] == "5"
    assert decode(Sample, data) == sample


def test_nested_values_and_optionals() -> None:
    reply = SyncReply(
        acknowledged_sequence=4,
        now_ns=5,
        grants=(
            Grant(project="lab", amount_neur=9),
            Grant(
                project="lab2",
                amount_neur=0,
                refusal=Reason(code=ReasonCode.BUDGET_EXCEEDED, parameters={"project": "lab2"}),
            ),
        ),
    )
    assert decode(SyncReply, encode(reply)) == reply
    assert encode(reply)["snapshot"] is None


def test_ids_that_are_new_types_are_text() -> None:
    reading = NodeReading(
        node=NodeId("n1"), zone="z", start_ns=1, end_ns=2, cpu_ns=3, cpu_milli=4, energy_mj=5, idle_mj=1,
        method="m", quality=EnergyClass.CONSTANT, uncertainty_ppm=1,
    )  # fmt: skip
    allocation = NodeAllocation(
        reading=reading,
        task_mj={StepId("s1"): 2**60},
        idle_mj=0,
        unattributed_mj=0,
        overhead_mj=0,
        task_overhead_mj={},
    )
    data = encode(allocation)
    assert data["task_mj"] == {"s1": str(2**60)}
    assert data["reading"]["quality"] == "E"
    assert decode(NodeAllocation, data) == allocation


def test_top_level_collections_encode_by_item() -> None:
    want = Want(project="lab", amount_neur=1)
    assert encode([want]) == [{"project": "lab", "amount_neur": "1", "least_neur": "0"}]
    assert encode({"a": WorkloadKind.JOB, "b": (b"x", 2**60)}) == {
        "a": "job",
        "b": ["eA==", str(2**60)],
    }


def test_the_domain_has_a_wire_form() -> None:
    for kind in (SyncRequest, SyncReply, WorkloadSpec, Receipt, KeyView):
        with pytest.raises(InvalidSpec):
            decode(kind, {"nonsense": 1})


@pytest.mark.parametrize(
    ("kind", "data", "said", "hint"),
    [
        (Want, {"project": "lab", "amount_neu": "1"}, "unknown key 'amount_neu'", "amount_neur?"),
        (Want, {"zzz": 1}, "unknown key 'zzz'", "known: project, amount_neur"),
        (Want, {"project": "lab"}, "missing amount_neur", ""),
        (Want, [], "expected an object, found an array", ""),
        (Want, {"project": 1, "amount_neur": 1}, "project: expected text, found a number", ""),
        (Want, {"project": None, "amount_neur": 1}, "project: expected text, found null", ""),
        (Want, {"project": "x", "amount_neur": 1.0}, "amount_neur: expected an integer", ""),
        (Want, {"project": "x", "amount_neur": True}, "amount_neur: expected an integer", ""),
        (Want, {"project": "x", "amount_neur": "01"}, "amount_neur: expected an integer", ""),
        (Want, {"project": "x", "amount_neur": "-0"}, "amount_neur: expected an integer", ""),
        (Want, {"project": "x", "amount_neur": "1" * 41}, "amount_neur: expected", ""),
        (Sample, {"count": "7"}, "count: expected an integer, found text", ""),
        (Sample, {"count": True}, "count: expected an integer, found true or false", ""),
        (Sample, {"is_open": 1}, "is_open: expected true or false", ""),
        (Sample, {"ratio": "1"}, "ratio: expected a number", ""),
        (Sample, {"salt": "?"}, "salt: expected base64", ""),
        (Sample, {"held_mj": []}, "held_mj: expected an object", ""),
        (Sample, {"held_mj": {"a": 0.5}}, "held_mj.a: expected an integer", ""),
        (WorkloadSpec, {"kind": "jib", "name": "x"}, "kind: 'jib' is not a WorkloadKind", "job?"),
        (WorkloadSpec, {"kind": [], "name": "x"}, "kind: [] is not a WorkloadKind", "one of"),
        (SyncReply, {"acknowledged_sequence": 0, "now_ns": 0, "grants": [{}]}, "grants.0", ""),
        (SyncReply, {"acknowledged_sequence": 0, "now_ns": 0, "grants": {}}, "an array", ""),
    ],
)
def test_what_is_refused_and_where(kind: type, data: object, said: str, hint: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        decode(kind, data)
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_union_of_two_values_has_no_wire_form() -> None:
    with pytest.raises(TypeError, match="no form"):
        decode(Ambiguous, {"value": 1})
    with pytest.raises(TypeError, match="no form"):
        encode(Ambiguous(value=1))
