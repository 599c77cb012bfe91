"""A small burst against a small budget: the benchmark's own claims, with a real kill."""

import argparse

from benchmarks.budget_burst import run


def test_a_budget_holds_when_a_gateway_is_killed_in_a_burst() -> None:
    result = run(argparse.Namespace(streams=40, fits=8, stream_s=3.0))
    assert result["overshoot_eur"] == 0
    assert result["admitted"] == result["fits"] == 8
    assert result["succeeded"] + result["cut_by_kill"] == result["admitted"]
    assert result["spent_eur"] <= result["budget_eur"]
    assert result["cut_by_kill"] > 0
    assert result["cut_charged_eur"] <= result["cut_by_kill"] * result["reservation_eur"]
    assert result["held_after_eur"] == 0
    assert result["streams"] == result["admitted"] + result["refused_402"] + result["unreachable"]
