"""The judge of the crash benchmark finds what is planted: a judge that sees nothing proves nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks._crash_kills import Kill
from benchmarks._crash_load import Call, Job
from benchmarks._crash_money import beyond_budget, cost_neur, judge_calls, judge_energy
from benchmarks._crash_tasks import duplicated, lost, read_lives
from benchmarks._crash_world import LAB, LAB_BUDGET_NEUR
from moulin.domain.usage import Charge, Meter
from moulin.domain.views import BalanceView, ReceiptView, WorkloadView
from moulin.domain.workload import WorkloadKind, WorkloadSpec
from tests.unit.ledger.examples import ASKED

ID = "job_1"
SECOND_NS = 10**9


def job(mode: str = "plain", ranks: int = 1) -> Job:
    return Job(name="a", mode=mode, ranks=ranks, seconds=1.0, id=ID)


def view(state: str = "succeeded") -> WorkloadView:
    return WorkloadView(
        id=ID, kind="job", name="a", organisation="uni", project=LAB, state=state,
        spec=WorkloadSpec(kind=WorkloadKind.JOB, name="a"), submitted_by="me", submitted_at_ns=1,
    )  # fmt: skip


def kill(step: str) -> Kill:
    return Kill(at_ns=0, kind="shim", pid=9, step=step)


def written(folder: Path, *lines: str, rank: int = 0) -> None:
    """Write lines `what generation pid second` as tasks do."""
    with (folder / f"a.{rank}").open("a") as file:
        for line in lines:
            what, generation, pid, second = line.split()
            at_ns = int(float(second) * SECOND_NS)
            file.write(f"{what} {ID}.u0.g{generation}.t{rank} {generation} {pid} {at_ns}\n")


def test_a_job_that_did_its_work_is_fine(tmp_path: Path) -> None:
    written(tmp_path, "start 1 10 1", "beat 1 10 2", "end 1 10 3")
    lives = read_lives(job(), tmp_path)
    assert list(lost(job(), [view()], lives, [])) == []
    assert list(duplicated(job(), [view()], lives, [])) == []


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ([], "unknown"),
        ([view("running")], "never ended"),
        ([view("succeeded")], "without its effect"),
        ([view("failed")], "without cause"),
        ([view("cancelled")], "never ended"),
    ],
)
def test_an_acknowledged_job_is_not_lost_silently(
    tmp_path: Path, views: list[WorkloadView], words: str
) -> None:
    written(tmp_path, "start 1 10 1", "beat 1 10 2")
    (found,) = lost(job(), views, read_lives(job(), tmp_path), [])
    assert words in found


def test_a_gang_has_its_effect_only_whole(tmp_path: Path) -> None:
    gang = job(ranks=2)
    written(tmp_path, "start 1 10 1", "end 1 10 3")
    written(tmp_path, "start 1 11 1", rank=1)
    assert len(list(lost(gang, [view()], read_lives(gang, tmp_path), []))) == 1
    written(tmp_path, "end 1 11 3", rank=1)
    assert list(lost(gang, [view()], read_lives(gang, tmp_path), [])) == []


def test_a_failure_has_a_cause_after_enough_failures_or_kills(tmp_path: Path) -> None:
    failing = job("fails")
    written(tmp_path, "start 1 10 1", "failed 1 10 2", "start 2 11 3", "failed 2 11 4")
    assert len(list(lost(failing, [view("failed")], read_lives(failing, tmp_path), []))) == 1
    kills = [kill(f"{ID}.u0.g{n}.t0") for n in range(1, 5)]
    assert list(lost(failing, [view("failed")], read_lives(failing, tmp_path), kills)) == []
    written(tmp_path, "start 3 12 5", "failed 3 12 6")
    assert list(lost(failing, [view("failed")], read_lives(failing, tmp_path), [])) == []


def test_what_happens_twice_is_seen(tmp_path: Path) -> None:
    written(tmp_path, "start 1 10 1", "start 1 11 1.5", "beat 1 10 4", "start 2 12 3.5")
    found = list(duplicated(job(), [view(), view()], read_lives(job(), tmp_path), []))
    assert [words.partition(": ")[2] for words in found] == [
        "is 2 jobs",
        "generation 1 rank 0 ran 2 times",
        "generations 1 and 2 overlap by 500 ms",
    ]


def test_a_success_is_repeated_only_when_its_shim_was_killed(tmp_path: Path) -> None:
    written(tmp_path, "start 1 10 1", "end 1 10 2", "start 2 11 3", "end 2 11 4")
    lives = read_lives(job(), tmp_path)
    assert len(list(duplicated(job(), [view()], lives, []))) == 1
    assert list(duplicated(job(), [view()], lives, [kill(f"{ID}.u0.g1.t0")])) == []
    assert len(list(duplicated(job(), [view()], lives, [kill(f"{ID}.u0.g2.t0")]))) == 1


def call(**changes: object) -> Call:
    made = Call(LAB, False, 10, 100, 0, 200, "req_1", "rcp_req_1", (40, 7), True)
    return replace(made, **changes)  # type: ignore[arg-type]


def receipt(tokens: tuple[int, int] = (40, 7), energy_mj: int = 5) -> ReceiptView:
    quantities = {Meter.TOKENS_INPUT.value: tokens[0], Meter.TOKENS_OUTPUT.value: tokens[1]}
    usage = replace(
        ASKED, id="use_req_1", request="req_1", energy_mj=energy_mj, quantities=quantities
    )
    charge = Charge(
        usage=usage.id, amount_neur=cost_neur(tokens), operator_cost_neur=0, price_book="list",
        lines=(),
    )  # fmt: skip
    return ReceiptView(
        id="rcp_req_1", organisation="uni", project=LAB, usage=usage, charge=charge, origin="o",
        leaf_index=0, issued_at_ns=9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "receipts", "words"),
    [
        (call(), [], "got an answer, no receipt"),
        (call(is_full=False), [], "in part, no receipt"),
        (call(), [receipt((40, 8))], "used (40, 7) tokens, charged for (40, 8)"),
        (call(is_full=False), [receipt((40, 11_000))], "more than was reserved"),
        (call(status=502, is_full=False, tokens=None), [receipt()], "refused with 502 and charged"),
        (call(request="", receipt="", status=200), [receipt()], "no receipt"),
    ],
)
def test_a_call_charged_wrong_is_seen(made: Call, receipts: list[ReceiptView], words: str) -> None:
    found = list(judge_calls([made], {each.id: each for each in receipts}))
    assert words in found[0]


def test_calls_charged_right_are_fine() -> None:
    cut = call(is_full=False, tokens=None)
    assert list(judge_calls([call()], {"rcp_req_1": receipt()})) == []
    assert list(judge_calls([cut], {"rcp_req_1": receipt((40, 3))})) == []
    unanswered = call(request="", receipt="", status=0, is_full=False, tokens=None)
    assert list(judge_calls([unanswered], {"rcp_req_1": receipt()})) == []


def test_a_charge_nobody_could_have_caused_is_seen() -> None:
    assert len(list(judge_calls([], {"rcp_req_1": receipt()}))) == 1


def test_tokens_out_of_nothing_are_seen() -> None:
    assert list(judge_energy([receipt()])) == []
    assert len(list(judge_energy([receipt(energy_mj=0)]))) == 1


def test_a_project_beyond_its_budget_is_seen() -> None:
    def balance(spent_neur: int, held_neur: int) -> BalanceView:
        return BalanceView(
            project=LAB, organisation="uni", budget_neur=LAB_BUDGET_NEUR, spent_neur=spent_neur,
            reserved_neur=held_neur, granted_neur=0,
        )  # fmt: skip

    assert list(beyond_budget([balance(LAB_BUDGET_NEUR - 5, 5)])) == []
    assert len(list(beyond_budget([balance(LAB_BUDGET_NEUR - 5, 6)]))) == 1
    assert len(list(beyond_budget([balance(-1, 0)]))) == 1
