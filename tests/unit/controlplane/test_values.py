"""Small pure parts of the control plane, by table."""

import pytest

from moulin.controlplane.books import Repeats
from moulin.controlplane.metered import StepCursor, held_window
from moulin.controlplane.plane import round_to_two_digits
from moulin.controlplane.submit import refusal
from moulin.domain.errors import BudgetExceeded, QuotaExceeded, Refused
from moulin.domain.ids import AttemptId, NodeId, WorkloadId
from moulin.domain.reasons import Reason, ReasonCode


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(0, 0), (7, 7), (99, 99), (100, 100), (109, 100), (12_345, 12_000), (999_999, 990_000)],
)
def test_figures_keep_two_digits(value, rounded):
    assert round_to_two_digits(value) == rounded


@pytest.mark.parametrize(
    ("started", "ended", "until", "window", "held"),
    [
        (10, 0, 0, (0, 100), (10, 100)),
        (10, 50, 0, (0, 100), (10, 50)),
        (10, 0, 100, (100, 200), (100, 200)),
        (10, 150, 100, (100, 200), (100, 150)),
        (10, 90, 100, (100, 200), (100, 100)),  # an end that was told late
        (60, 0, 0, (100, 200), (60, 200)),  # a start that was told late
        (250, 0, 0, (100, 200), (200, 200)),  # an engine's clock a little ahead
        (250, 260, 0, (100, 200), (200, 200)),
        (120, 250, 0, (100, 200), (120, 200)),
    ],
)
def test_what_a_window_meters_of_a_task(started, ended, until, window, held):
    cursor = StepCursor(
        AttemptId("a"),
        NodeId("n"),
        1000,
        0,
        0,
        started_ns=started,
        ended_ns=ended,
        until_ns=until,
    )
    assert held_window(cursor, window) == held


def test_windows_in_a_row_meter_a_life_once():
    cursor = StepCursor(AttemptId("a"), NodeId("n"), 1000, 0, 0, started_ns=35, ended_ns=432)
    total = 0
    for end in range(100, 700, 100):
        start_ns, end_ns = held_window(cursor, (end - 100, end))
        total += end_ns - start_ns
        cursor.until_ns = end
    assert total == 432 - 35


def test_repeats_drop_the_oldest_and_say_so(monkeypatch):
    monkeypatch.setattr("moulin.controlplane.books.REPEATS_KEPT", 2)
    repeats = Repeats()
    for number in range(3):
        assert repeats.is_complete is (number < 3)
        repeats.remember("p", f"k{number}", WorkloadId(f"w{number}"), "hash")
    assert not repeats.is_complete
    assert list(repeats.made) == [("p", "k1"), ("p", "k2")]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (ReasonCode.BUDGET_EXCEEDED, BudgetExceeded),
        (ReasonCode.INSUFFICIENT_QUOTA, QuotaExceeded),
        (ReasonCode.EXCEEDS_QUOTA, Refused),
        (ReasonCode.JURISDICTION_FORBIDS, Refused),
        (ReasonCode.MODEL_TOO_LARGE, Refused),
    ],
)
def test_the_first_reason_names_the_error(code, error):
    reasons = [
        Reason(code=code, parameters={"zone": "east"}),
        Reason(code=ReasonCode.EXCEEDS_NODE),
    ]
    made = refusal("submit it", reasons)
    assert type(made) is error
    assert made.message.startswith("submit it: ")
    assert made.hint
    shown = made.details["reasons"]
    assert isinstance(shown, list)
    assert shown[0] == {"code": code.value, "parameters": {"zone": "east"}}
    assert len(shown) == 2
