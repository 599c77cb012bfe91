"""When a circuit opens and closes, and how long is too long."""

import pytest

from moulin.routing.breaker import (
    FLOOR_S,
    REST_MAX_S,
    REST_S,
    SAMPLES_MIN,
    TIMES_USUAL,
    Circuit,
    Failure,
    Patience,
)


@pytest.mark.parametrize(
    ("failures", "is_open"),
    [
        ((), False),
        ((Failure.ERROR,) * 2, False),
        ((Failure.ERROR,) * 3, True),
        ((Failure.UNREACHABLE,), True),
        ((Failure.SILENT,), True),
    ],
)
def test_what_opens_a_circuit(failures: tuple[Failure, ...], is_open: bool) -> None:
    circuit = Circuit()
    for failure in failures:
        circuit.failed(failure, 100.0)
    assert (circuit.rests_until_s > 0.0) is is_open


def test_an_answer_between_failures_starts_the_count_again() -> None:
    circuit = Circuit()
    for _ in range(5):
        circuit.failed(Failure.ERROR, 1.0)
        circuit.failed(Failure.ERROR, 1.0)
        circuit.succeeded()
    assert circuit.failures == 0
    assert not circuit.rests_until_s


def test_half_open_lets_one_through_and_each_failure_doubles_the_rest() -> None:
    circuit, now_s, rests = Circuit(), 100.0, []
    for _ in range(7):
        circuit.failed(Failure.UNREACHABLE, now_s)
        rests.append(circuit.rests_until_s - now_s)
        assert not circuit.is_due(circuit.rests_until_s - 0.1)
        now_s = circuit.rests_until_s
        assert circuit.is_due(now_s)
        circuit.probe()
        assert not circuit.is_due(now_s + 1000)
    assert rests == [REST_S, 4.0, 8.0, 16.0, REST_MAX_S, REST_MAX_S, REST_MAX_S]
    circuit.succeeded()
    circuit.failed(Failure.UNREACHABLE, 500.0)
    assert circuit.rests_until_s == 500.0 + REST_S


def test_requests_sent_before_it_opened_do_not_make_it_rest_longer() -> None:
    circuit = Circuit()
    for now_s in (100.0, 101.0, 101.5):
        circuit.failed(Failure.UNREACHABLE, now_s)
    assert circuit.rests_until_s == 100.0 + REST_S


def test_a_probe_that_says_nothing_makes_room_for_the_next() -> None:
    circuit = Circuit()
    circuit.failed(Failure.UNREACHABLE, 100.0)
    circuit.probe()
    circuit.abandoned()
    assert circuit.is_due(100.0 + REST_S)


def test_patience_needs_samples() -> None:
    patience = Patience()
    for _ in range(SAMPLES_MIN - 1):
        patience.saw(1.0, 10)
    assert patience.limit_s(10, 600.0) == 600.0
    patience.saw(1.0, 10)
    assert patience.limit_s(10, 600.0) == FLOOR_S + TIMES_USUAL
    assert patience.limit_s(100, 600.0) == FLOOR_S + 10 * TIMES_USUAL
    assert patience.limit_s(10**6, 600.0) == 600.0


def test_patience_remembers_the_slow_for_a_while() -> None:
    patience = Patience()
    patience.saw(50.0, 10)
    for _ in range(SAMPLES_MIN):
        patience.saw(0.0, 10)
    slow_s = patience.limit_s(10, 1000.0)
    assert 100.0 < slow_s < FLOOR_S + 50.0 * TIMES_USUAL
    for _ in range(1000):
        patience.saw(0.0, 0)
    assert patience.limit_s(10, 1000.0) == pytest.approx(FLOOR_S, abs=0.1)
