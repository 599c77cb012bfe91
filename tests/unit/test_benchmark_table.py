"""README's figures come from kept results; one that was not measured is not shown as if it was."""

import json

import pytest

from scripts import benchmark_table


def test_a_missing_result_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_table, "RESULTS", tmp_path)
    assert benchmark_table.table().count("not kept yet") == len(benchmark_table.ROWS)


def test_a_kept_result_is_shown_with_its_day_and_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_table, "RESULTS", tmp_path)
    record = {
        "date": "2026-11-22T01:02:03+00:00",
        "machine": {"cpus": 2, "cpu": "A CPU", "memory_gb": 25},
        "result": {
            "kills": 100, "tasks": 240, "lost": 0, "duplicated": 0, "orphaned": 0, "unbalanced": 0,
        },
    }  # fmt: skip
    (tmp_path / "crash.json").write_text(json.dumps(record), "utf-8")
    shown = benchmark_table.table()
    assert "100 kills, 240 tasks: 0 lost, 0 doubled, 0 orphaned, 0 unbalanced" in shown
    assert "| `crash` | 2026-11-22 |" in shown
    assert "Measured on 2 CPUs (A CPU), 25 GB" in shown


def test_the_block_is_replaced_and_nothing_else():
    text = f"before\n{benchmark_table.START}\nold\n{benchmark_table.END}\nafter\n"
    made = benchmark_table.with_table(text)
    assert made.startswith("before\n")
    assert made.endswith("after\n")
    assert "old" not in made
    assert benchmark_table.with_table(made) == made
    with pytest.raises(ValueError, match="no block"):
        benchmark_table.with_table("before\nafter\n")
