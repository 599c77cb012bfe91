"""What a gateway remembers of the minute before it started: from journals, and from its own file."""

import json
from pathlib import Path

import pytest

from moulin.gateway.recall import FILE, Counted, recall

NS = 1_000_000_000
NOW = 1_000_000 * NS


def begin(request: str, ago_s: float, *, tokens: int = 10, key: str = "key_1") -> dict:
    return {
        "kind": "begin", "request": request, "at_ns": str(int(NOW - ago_s * NS)),
        "organisation": "uni", "project": "lab", "key": key,
        "tokens_input": tokens // 2, "tokens_output": tokens - tokens // 2, "amount_neur": "1",
    }  # fmt: skip


def end(request: str, ago_s: float, *, tokens: int) -> dict:
    return {**begin(request, ago_s, tokens=tokens), "kind": "end", "outcome": "completed"}


def write(folder: Path, epoch: int, *lines: dict, rest: bytes = b"") -> Path:
    path = folder / f"{epoch}.journal"
    numbered = [{"sequence": number, **line} for number, line in enumerate(lines, 1)]
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in numbered) + rest)
    return path


def totals(counts: tuple[Counted, ...]) -> tuple[int, int]:
    return sum(each.requests for each in counts), sum(each.tokens for each in counts)


@pytest.mark.parametrize(
    ("lines", "requests", "tokens"),
    [
        ([], 0, 0),
        ([begin("a", 5)], 1, 10),
        ([begin("a", 5), end("a", 4, tokens=3)], 1, 3),
        ([begin("a", 5), end("a", 4, tokens=99)], 1, 10),
        ([begin("a", 61.5), begin("b", 60.5)], 1, 10),
        ([begin("a", 70), end("a", 3, tokens=3)], 0, 0),
        ([begin("a", 5), begin("b", 5), end("b", 1, tokens=0)], 2, 10),
        ([{**begin("a", 5), "tokens_input": 0, "tokens_output": 0, "audio_ms": 900}], 1, 0),
        ([begin("a", -3)], 1, 10),
    ],
    ids=[
        "nothing", "running", "ended", "never above the reservation", "a minute",
        "begun before", "two", "audio", "a clock that went back",
    ],
)  # fmt: skip
def test_what_began_within_a_minute_counts(
    tmp_path: Path, lines: list[dict], requests: int, tokens: int
) -> None:
    write(tmp_path, 7, *lines)
    assert totals(recall(tmp_path, NOW).counts) == (requests, tokens)


def test_the_file_outlives_journals_and_nothing_counts_twice(tmp_path: Path) -> None:
    first = write(tmp_path, 7, begin("a", 5))
    assert totals(recall(tmp_path, NOW).counts) == (1, 10)
    assert totals(recall(tmp_path, NOW).counts) == (1, 10)
    first.unlink()  # the leader has it
    write(tmp_path, 8, begin("b", 2, key="key_2"))
    found = recall(tmp_path, NOW)
    assert found.through_epoch == 8
    assert {each.key: each.requests for each in found.counts} == {"key_1": 1, "key_2": 1}
    assert recall(tmp_path, NOW + 58 * NS).counts == found.counts[1:]
    assert recall(tmp_path, NOW + 60 * NS).counts == ()


def test_requests_of_one_second_and_key_are_one_count(tmp_path: Path) -> None:
    write(tmp_path, 7, *(begin(f"r{n}", 5.1 - n / 1000) for n in range(200)))
    counts = recall(tmp_path, NOW).counts
    assert len(counts) == 2
    assert totals(counts) == (200, 2000)


def test_a_long_journal_is_read_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moulin.gateway.recall.READ_BYTES", 1000)
    old = [begin(f"o{n}", 500 - n) for n in range(200)]
    write(tmp_path, 7, *old, *(begin(f"r{n}", 30 - n) for n in range(20)))
    assert totals(recall(tmp_path, NOW).counts) == (20, 200)


@pytest.mark.parametrize("damage", [b'{"sequence":3,"ki', b"\0" * 4096 + b"\n", b"[]\n", b"\n"])
def test_damage_hides_what_is_behind_it(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, 7, begin("a", 5), rest=damage)
    (tmp_path / FILE).write_bytes(damage)
    assert totals(recall(tmp_path, NOW).counts) == (1, 10)


def test_a_disk_that_takes_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 7, begin("a", 5))
    (tmp_path / f"{FILE}.new").mkdir()
    assert totals(recall(tmp_path, NOW).counts) == (1, 10)
    assert "cannot be kept" in caplog.text
