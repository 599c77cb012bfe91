"""Checkpoints on the hub, spoken by a local server: every file held to what the hub states."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.catalog.entries import SMOLLM2_135M
from moulin.domain.errors import DigestMismatch, SourceError, SourceUnavailable
from moulin.domain.model import VLLM, HubRepository, Provenance, SourcePreference, Variant
from moulin.sources.fetch import choose_source, fetch_variant
from moulin.sources.files import describe_file
from tests.checkpoint_bytes import CONFIG, safetensors
from tests.integration.sources.model_server import COMMIT

FORM = Variant(
    name="bf16",
    precision="BF16",
    size_bytes=1,
    sha256="",
    provenance=Provenance.OFFICIAL,
    sources=(HubRepository(repository="maker/model"),),
    runtime=VLLM,
)
MODEL = replace(SMOLLM2_135M, name="tiny", variants=(FORM,))
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}" * 50_000,
    "model.safetensors": safetensors(),
    # The same weights for another program, code, and what is for people.
    "consolidated.safetensors": safetensors(),
    "modeling_own.py": b"raise SystemExit('run')",
    "README.md": b"# It",
    "onnx/config.json": b"{}",
}
TAKEN = {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture(autouse=True)
def hub(server):
    for name, data in FILES.items():
        server.hub[f"maker/model/{name}"] = data
    return server.hub


def deploy(store: Path, settings):
    hub, name = SourcePreference.HUB, "bf16"
    choice = choose_source(MODEL, hub, store, variant_name=name, settings=settings)
    return fetch_variant(choice, store, settings=settings)


def test_a_checkpoint_is_fetched_whole_and_pinned(settings, tmp_path) -> None:
    fetched = deploy(tmp_path, settings)
    assert {path.name for path in Path(fetched.path).iterdir()} == TAKEN
    assert all((Path(fetched.path) / name).read_bytes() == FILES[name] for name in TAKEN)
    assert describe_file(f"file:{fetched.path}").variants[0].sha256 == fetched.sha256
    assert fetched.source == "hf:maker/model@main"
    pin = json.loads((tmp_path / "pins" / "tiny--bf16.json").read_text())
    assert (pin["sha256"], pin["commit"]) == (fetched.sha256, COMMIT)


def test_the_second_deploy_asks_nobody(server, settings, tmp_path) -> None:
    deploy(tmp_path, settings)
    server.asked.clear()
    assert deploy(tmp_path, settings).is_cached
    assert server.asked == []


def test_an_interrupted_fetch_goes_on_where_it_stopped(server, settings, tmp_path) -> None:
    server.faults.drops, server.faults.drop_after_bytes = 3, 16_384
    fetched = deploy(tmp_path, settings)
    assert any(asked.start > 0 for asked in server.asked)
    assert (Path(fetched.path) / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]


def test_what_is_left_of_another_commit_is_fetched_anew(settings, tmp_path) -> None:
    fetched = deploy(tmp_path, settings)
    stored = Path(fetched.path)
    part = tmp_path / "partial" / f"{fetched.sha256}.part"
    stored.rename(part)
    (part / "tokenizer.json").write_bytes(b"[]" * 50_000)
    (part / "gone.json").write_bytes(b"{}")
    again = deploy(tmp_path, settings)
    assert (Path(again.path) / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]
    assert {path.name for path in Path(again.path).iterdir()} == TAKEN


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_bytes_that_the_hub_did_not_state_are_not_kept(server, settings, tmp_path, name) -> None:
    data = FILES[name]
    sha256 = hashlib.sha256(data).hexdigest()
    server.files[f"/blobs/{sha256}"] = data[:-1] + b"\x01"
    with pytest.raises(DigestMismatch, match=name):
        deploy(tmp_path, settings)
    assert not list((tmp_path / "models").glob("*"))


def test_the_pinned_commit_is_fetched_again_and_another_content_refused(
    hub, settings, tmp_path
) -> None:
    path = Path(deploy(tmp_path, settings).path)
    path.rename(tmp_path / "away")
    hub["maker/model/tokenizer.json"] = b"[1]"
    with pytest.raises(DigestMismatch, match="promised was"):
        deploy(tmp_path, settings)


def test_gated_missing_and_empty_repositories_are_told_apart(
    hub, server, settings, tmp_path
) -> None:
    server.gated["maker/model"] = set()
    with pytest.raises(SourceUnavailable, match="licence has to be accepted"):
        deploy(tmp_path, settings)
    server.gated.clear()
    hub.clear()
    with pytest.raises(SourceUnavailable, match="no such repository"):
        deploy(tmp_path, settings)
    hub["maker/model/README.md"] = b"# It"
    with pytest.raises(SourceError, match="holds no checkpoint"):
        deploy(tmp_path, settings)
