"""Downloads from a real server that drops, lies, refuses and forgets."""

import random
import socket
from pathlib import Path

import pytest

from moulin.domain.errors import DigestMismatch, SourceUnavailable
from moulin.sources.download import Address, Patience, download

DATA = random.Random(1).randbytes(200_000)


@pytest.fixture
def address(server) -> Address:
    server.files["/f"] = DATA
    return Address(url=f"{server.url}/f", size_bytes=len(DATA))


def fetch(address: Address, part: Path, patience: Patience) -> list[int]:
    counts: list[int] = []
    download(address, part, patience, counts.append)
    return counts


def test_a_file_arrives_whole_with_rising_progress(address, tmp_path, patience) -> None:
    counts = fetch(address, tmp_path / "part", patience)
    assert (tmp_path / "part").read_bytes() == DATA
    assert counts == sorted(counts)
    assert counts[-1] == len(DATA)


def test_only_the_rest_is_asked_for(server, address, tmp_path, patience) -> None:
    (tmp_path / "part").write_bytes(DATA[:70_000])
    fetch(address, tmp_path / "part", patience)
    assert (tmp_path / "part").read_bytes() == DATA
    assert server.starts("/f") == [70_000]


def test_a_dropped_connection_is_continued(server, address, tmp_path, patience) -> None:
    server.faults.drops, server.faults.drop_after_bytes = 4, 40_000
    fetch(address, tmp_path / "part", patience)
    assert (tmp_path / "part").read_bytes() == DATA
    starts = server.starts("/f")
    assert len(starts) == 5
    assert starts == sorted(set(starts))


def test_a_drop_is_noticed_without_a_known_size(server, address, tmp_path, patience) -> None:
    server.faults.drops, server.faults.drop_after_bytes = 1, 40_000
    fetch(Address(url=address.url), tmp_path / "part", patience)
    assert (tmp_path / "part").read_bytes() == DATA


def test_a_server_without_ranges_starts_again(server, address, tmp_path, patience) -> None:
    (tmp_path / "part").write_bytes(b"x" * 70_000)
    server.faults.is_deaf_to_ranges = True
    fetch(address, tmp_path / "part", patience)
    assert (tmp_path / "part").read_bytes() == DATA


def test_a_wrong_range_is_not_believed(server, address, tmp_path, patience) -> None:
    (tmp_path / "part").write_bytes(DATA[:70_000])
    server.faults.wrong_range = 5
    fetch(address, tmp_path / "part", patience)
    assert (tmp_path / "part").read_bytes() == DATA
    assert server.starts("/f") == [70_000, 0]


@pytest.mark.parametrize("size_bytes", [0, len(DATA)])
def test_a_part_longer_than_the_file_is_thrown_away(
    server, address, tmp_path, patience, size_bytes
) -> None:
    (tmp_path / "part").write_bytes(DATA + b"more")
    fetch(Address(url=address.url, size_bytes=size_bytes), tmp_path / "part", patience)
    assert (tmp_path / "part").read_bytes() == DATA


def test_a_complete_part_asks_for_nothing(server, address, tmp_path, patience) -> None:
    (tmp_path / "part").write_bytes(DATA)
    assert fetch(address, tmp_path / "part", patience) == [len(DATA)]
    assert server.asked == []


def test_busy_answers_are_retried(server, address, tmp_path, patience) -> None:
    server.faults.statuses = [503, 429]
    fetch(address, tmp_path / "part", patience)
    assert (tmp_path / "part").read_bytes() == DATA


def test_a_server_that_stays_broken_is_given_up_and_the_part_kept(
    server, address, tmp_path, patience
) -> None:
    (tmp_path / "part").write_bytes(DATA[:50_000])
    server.faults.statuses = [500] * 3
    with pytest.raises(SourceUnavailable, match="answered 500") as caught:
        fetch(address, tmp_path / "part", patience)
    assert caught.value.retryable
    assert caught.value.details["bytes_done"] == 50_000
    assert (tmp_path / "part").read_bytes() == DATA[:50_000]
    assert len(server.starts("/f")) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_final(server, address, tmp_path, patience, status) -> None:
    server.faults.statuses = [status]
    with pytest.raises(SourceUnavailable, match=f"answered {status}"):
        fetch(address, tmp_path / "part", patience)
    assert len(server.starts("/f")) == 1


def test_more_bytes_than_promised_are_refused(server, address, tmp_path, patience) -> None:
    server.faults.extra_bytes = b"more"
    with pytest.raises(DigestMismatch, match=f"more than the {len(DATA)} bytes"):
        fetch(address, tmp_path / "part", patience)
    assert not (tmp_path / "part").exists()


def test_nobody_listening_is_named_without_credentials(tmp_path, patience) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/f?token=secret"
        with pytest.raises(SourceUnavailable) as caught:
            fetch(Address(url=url), tmp_path / "part", patience)
    assert "127.0.0.1" in caught.value.message
    assert "secret" not in f"{caught.value.message}{caught.value.hint}{caught.value.details}"


def test_a_silent_server_is_given_up(server, address, tmp_path) -> None:
    server.faults.pause_after_bytes = 40_000
    impatient = Patience(connect_s=1, silence_s=0.2, tries_max=1, backoff_s=0.0)
    with pytest.raises(SourceUnavailable):
        fetch(address, tmp_path / "part", impatient)
    part = (tmp_path / "part").read_bytes()
    assert part == DATA[: len(part)]


def test_local_addresses_are_copied(tmp_path, patience) -> None:
    (tmp_path / "a b").write_bytes(DATA)
    (tmp_path / "part").write_bytes(DATA[:10])
    fetch(Address(url=(tmp_path / "a b").as_uri()), tmp_path / "part", patience)
    assert (tmp_path / "part").read_bytes() == DATA
    with pytest.raises(SourceUnavailable, match="No such file"):
        fetch(Address(url=(tmp_path / "gone").as_uri()), tmp_path / "part", patience)


def test_headers_are_not_in_the_representation() -> None:
    assert "hf_secret" not in repr(Address(url="x", headers={"authorization": "hf_secret"}))
