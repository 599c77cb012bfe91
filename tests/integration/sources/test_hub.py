"""The hub's protocol spoken by a local server: digest from its metadata, pinned, held to."""

import hashlib
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.catalog.entries import QWEN_CODER_05B
from moulin.domain.errors import DigestMismatch, DiskFull, SourceError, SourceUnavailable
from moulin.domain.model import HubFile, Provenance, SourcePreference, Variant
from moulin.sources.fetch import choose_source, fetch_variant, held_variants
from moulin.sources.hub import ask_hub
from tests.integration.sources.model_server import COMMIT

DATA = random.Random(2).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SOURCE = HubFile(repository="maker/model-gguf", file="model-q4.gguf")
MODEL = replace(
    QWEN_CODER_05B,
    name="tiny",
    variants=(
        Variant(
            name="q4",
            precision="Q4",
            size_bytes=1,
            sha256="",
            provenance=Provenance.OFFICIAL,
            sources=(SOURCE,),
        ),
    ),
)
HUB = SourcePreference.HUB


@pytest.fixture(autouse=True)
def token(monkeypatch) -> str:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    return "hf_verysecret"


@pytest.fixture(autouse=True)
def hub_file(server) -> None:
    server.hub["maker/model-gguf/model-q4.gguf"] = DATA


def deploy(store: Path, settings):
    return fetch_variant(
        choose_source(MODEL, HUB, store, settings=settings), store, settings=settings
    )


def test_digest_size_and_commit_are_the_hubs(server) -> None:
    found = ask_hub(SOURCE, 5, server.url)
    assert (found.sha256, found.size_bytes, found.commit) == (SHA256, len(DATA), COMMIT)
    assert f"/resolve/{COMMIT}/" in found.url


def test_first_download_pins_what_the_hub_stated(server, settings, tmp_path) -> None:
    fetched = deploy(tmp_path, settings)
    assert Path(fetched.path).read_bytes() == DATA
    assert fetched.sha256 == SHA256
    assert fetched.provenance is Provenance.OFFICIAL
    assert fetched.source == "hf:maker/model-gguf/model-q4.gguf@main"
    assert not fetched.is_cached
    assert SHA256 in (tmp_path / "pins" / "tiny--q4.json").read_text()


def test_the_second_deploy_asks_nobody(server, settings, tmp_path) -> None:
    deploy(tmp_path, settings)
    server.asked.clear()
    assert deploy(tmp_path, settings).is_cached
    assert held_variants(MODEL, tmp_path) == {"q4"}
    assert server.asked == []


def test_the_token_goes_to_the_hub_and_nowhere_else(server, settings, tmp_path, capfd) -> None:
    deploy(tmp_path, settings)
    to_hub = [a.authorization for a in server.asked if "/resolve/" in a.path]
    elsewhere = [a.authorization for a in server.asked if "/blobs/" in a.path]
    assert set(to_hub) == {"Bearer hf_verysecret"}
    assert elsewhere == [""]
    assert "verysecret" not in repr(ask_hub(SOURCE, 5, server.url))
    assert "verysecret" not in "".join(capfd.readouterr())
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"verysecret" in p.read_bytes()]


def test_a_dropped_download_is_continued(server, settings, tmp_path) -> None:
    server.faults.drops, server.faults.drop_after_bytes = 2, 50_000
    assert Path(deploy(tmp_path, settings).path).read_bytes() == DATA
    starts = server.starts(f"/blobs/{SHA256}")
    assert len(starts) == 3
    assert starts == sorted(set(starts))


def test_tampered_bytes_are_not_kept(server, settings, tmp_path) -> None:
    server.files[f"/blobs/{SHA256}"] = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(DigestMismatch, match=SHA256):
        deploy(tmp_path, settings)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size > 1000]


def test_a_rotten_half_is_replaced_by_a_fresh_download(server, settings, tmp_path) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / f"{SHA256}.part").write_bytes(b"rot" * 1000)
    assert Path(deploy(tmp_path, settings).path).read_bytes() == DATA
    assert server.starts(f"/blobs/{SHA256}") == [3000, 0]


def test_another_file_under_the_same_name_is_refused(server, settings, tmp_path) -> None:
    fetched = deploy(tmp_path, settings)
    Path(fetched.path).unlink()
    server.hub["maker/model-gguf/model-q4.gguf"] = DATA + b"2"
    with pytest.raises(DigestMismatch, match="now states") as caught:
        deploy(tmp_path, settings)
    assert "delete pins/tiny--q4.json" in caught.value.hint


def test_a_damaged_pin_is_not_replaced_silently(server, settings, tmp_path) -> None:
    deploy(tmp_path, settings)
    (tmp_path / "pins" / "tiny--q4.json").write_text("{}")
    with pytest.raises(SourceError, match="damaged"):
        deploy(tmp_path, settings)


def test_a_small_file_without_a_digest_is_refused(server) -> None:
    server.hub_headers["X-Linked-Etag"] = '"0123456789012345678901234567890123456789"'
    with pytest.raises(SourceError, match="no SHA-256"):
        ask_hub(SOURCE, 5, server.url)


def test_what_cannot_fit_is_refused_before_the_first_byte(server, settings, tmp_path) -> None:
    server.hub_headers["X-Linked-Size"] = str(10**17)
    with pytest.raises(DiskFull) as caught:
        deploy(tmp_path, settings)
    assert caught.value.details["needed_bytes"] == 10**17
    assert server.starts(f"/blobs/{SHA256}") == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (replace(SOURCE, file="gone.gguf"), "there is no such file"),
        (replace(SOURCE, repository="no/such"), "there is no such"),
    ],
)
def test_what_the_hub_does_not_have_is_named(server, source, words) -> None:
    with pytest.raises(SourceUnavailable, match=words):
        ask_hub(source, 5, server.url)


def test_a_hub_out_of_reach_is_named_in_the_choice(server, settings, tmp_path) -> None:
    dead = replace(settings, hub_endpoint="http://127.0.0.1:9")
    both = replace(MODEL, variants=(*MODEL.variants, *QWEN_CODER_05B.variants[1:]))
    choice = choose_source(both, SourcePreference.ANY, tmp_path, settings=dead)
    assert choice.variant.provenance is Provenance.MIRROR
    assert "the official hub is out of reach" in choice.explanation
    with pytest.raises(SourceUnavailable) as caught:
        choose_source(both, HUB, tmp_path, settings=dead)
    assert "--source pypi" in caught.value.hint


def test_hf_endpoint_is_respected_without_any_setting(server, tmp_path) -> None:
    script = (
        "import sys; from moulin.sources.hub import ask_hub; from moulin.domain.model import HubFile\n"
        f"print(ask_hub(HubFile(repository={SOURCE.repository!r}, file={SOURCE.file!r}), 5).sha256)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == SHA256


@pytest.mark.parametrize(
    ("token", "words"),
    [("", "its licence has to be accepted first"), ("hf_other", "its licence has to be accepted")],
    ids=["without a token: 401", "a token that did not accept: 403"],
)
def test_a_gated_repository_says_what_to_do(server, monkeypatch, tmp_path, token, words) -> None:
    server.gated[SOURCE.repository] = {"hf_verysecret"}
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(SourceUnavailable, match=words) as caught:
        ask_hub(SOURCE, 5, server.url)
    assert caught.value.hint == "accept it on the hub and set HF_TOKEN"


def test_a_gated_repository_opens_for_a_token_that_accepted(server, settings, tmp_path) -> None:
    server.gated[SOURCE.repository] = {"hf_verysecret"}
    server.faults.drops, server.faults.drop_after_bytes = 1, 50_000
    assert Path(deploy(tmp_path, settings).path).read_bytes() == DATA
    assert len(server.starts(f"/blobs/{SHA256}")) == 2


def test_a_file_in_the_hubs_chunk_store_comes_as_plain_bytes(server, settings, tmp_path) -> None:
    server.hub_headers["X-Xet-Hash"] = "a" * 64
    server.hub_headers["Link"] = f'<{server.url}/api/xet>; rel="xet-auth"'
    assert Path(deploy(tmp_path, settings).path).read_bytes() == DATA
    assert not [asked.path for asked in server.asked if "xet" in asked.path]
