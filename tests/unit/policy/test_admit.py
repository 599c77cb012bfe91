"""Whether a submission may wait, and what is held for it: tables of numbers."""

from dataclasses import replace

import pytest

from moulin.domain.ids import OrganisationId, ProjectId, WorkloadId
from moulin.domain.reasons import Reason, ReasonCode, sentence
from moulin.domain.usage import Meter
from moulin.domain.workload import (
    EndpointSpec,
    Resources,
    Submission,
    TaskTemplate,
    Where,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.policy import Admitted, Denied, admit
from moulin.policy.admit import UnitPrice, reservation_neur

EURO = 10**9
SPEC = WorkloadSpec(
    kind=WorkloadKind.JOB,
    name="a job",
    resources=Resources(cpu_milli=2000, memory_bytes=10**9, accelerators=1),
    task=TaskTemplate(command=("true",)),
    time_limit_s=1800,
)
CPU_HOUR = UnitPrice(meter=Meter.CPU_MILLI_MS, unit_price_neur=EURO, per=1000 * 3600 * 1000)
GB_HOUR = UnitPrice(meter=Meter.MEMORY_MB_MS, unit_price_neur=EURO // 10, per=1000 * 3600 * 1000)
GPU_HOUR = UnitPrice(meter=Meter.ACCELERATOR_MS, unit_price_neur=3 * EURO, per=3600 * 1000)
TOKENS = UnitPrice(meter=Meter.TOKENS_OUTPUT, unit_price_neur=EURO, per=1)


def submission(**fields: object) -> Submission:
    return Submission(
        id=WorkloadId("job_1"),
        organisation=OrganisationId("lab"),
        project=ProjectId("atelier"),
        spec=replace(SPEC, **fields),  # type: ignore[arg-type]
        submitted_by="ada",
        submitted_at_ns=1,
    )


SERVED = EndpointSpec(model="m", replicas=3)


@pytest.mark.parametrize(
    ("fields", "prices", "neur"),
    [
        ({}, (), 0),
        ({}, (CPU_HOUR,), EURO),
        ({}, (GB_HOUR,), EURO // 20),
        ({}, (GPU_HOUR,), 3 * EURO // 2),
        ({}, (CPU_HOUR, GB_HOUR, GPU_HOUR), EURO + EURO // 20 + 3 * EURO // 2),
        ({}, (TOKENS,), 0),
        ({"nodes": 4}, (CPU_HOUR,), 4 * EURO),
        ({"time_limit_s": 3600}, (CPU_HOUR,), 2 * EURO),
        ({"time_limit_s": 0}, (CPU_HOUR,), 2 * EURO),
        ({"kind": WorkloadKind.ENDPOINT, "endpoint": SERVED}, (CPU_HOUR,), 6 * EURO),
        (
            {"resources": Resources(cpu_milli=1, memory_bytes=0), "time_limit_s": 1},
            (CPU_HOUR,),
            278,
        ),
        ({"resources": Resources(memory_bytes=999_999), "time_limit_s": 1}, (GB_HOUR,), 28),
    ],
)
def test_what_is_held_is_the_price_of_the_whole_time_limit(fields, prices, neur):
    assert reservation_neur(submission(**fields), prices) == neur


@pytest.mark.parametrize(
    ("available", "is_admitted"),
    [(None, True), (EURO, True), (EURO - 1, False), (0, False), (-5, False), (10**30, True)],
)
def test_what_is_left_decides(available, is_admitted):
    outcome = admit(submission(), (), (CPU_HOUR,), available, 10 * EURO)
    assert isinstance(outcome, Admitted) is is_admitted
    if isinstance(outcome, Admitted):
        assert outcome.reserved_neur == EURO


@pytest.mark.parametrize("available", [0, -1])
def test_nothing_left_admits_nothing_even_for_free(available):
    assert isinstance(admit(submission(), (), (), available, EURO), Denied)


def test_a_refusal_for_money_says_all_numbers():
    outcome = admit(submission(), (), (CPU_HOUR,), EURO // 2, 5 * EURO)
    assert isinstance(outcome, Denied)
    [reason] = outcome.reasons
    assert reason == Reason(
        code=ReasonCode.BUDGET_EXCEEDED,
        parameters={
            "project": "atelier",
            "left_eur": "0.50",
            "limit_eur": "5.00",
            "wanted_eur": "1.00",
        },
    )
    assert "?" not in sentence(reason)


@pytest.mark.parametrize("kind", list(WorkloadKind))
def test_kinds_that_no_engine_serves_are_refused_first(kind):
    impossible = (Reason(code=ReasonCode.EXCEEDS_NODE),)
    outcome = admit(submission(kind=kind), impossible, (), None, -1)
    assert isinstance(outcome, Denied)
    expected = (
        ReasonCode.KIND_NOT_SERVED if kind is WorkloadKind.SESSION else ReasonCode.EXCEEDS_NODE
    )
    assert [reason.code for reason in outcome.reasons] == [expected]


def test_what_no_waiting_cures_comes_before_money():
    impossible = (
        Reason(code=ReasonCode.JURISDICTION_FORBIDS),
        Reason(code=ReasonCode.EXCEEDS_NODE),
    )
    outcome = admit(submission(), impossible, (CPU_HOUR,), 0, 0)
    assert outcome == Denied(reasons=impossible)


def test_a_decision_is_named_by_what_it_was_made_of():
    def decision(**fields: object) -> str:
        outcome = admit(submission(**fields), (), (CPU_HOUR,), None, -1)
        assert isinstance(outcome, Admitted)
        return outcome.decision

    same = {decision(), decision(labels={"team": "a"}), decision(priority=3)}
    assert len(same) == 1
    others = {
        decision(where=Where(countries=("FR",))),
        decision(where=Where(zones=("FR",))),
        decision(time_limit_s=60),
    }
    assert len(others | same) == 4
