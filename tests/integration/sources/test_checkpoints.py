"""Folders in the hub's form: described, linked into the store, and refused when they are not whole."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from moulin.domain.errors import SourceError, SourceUnavailable
from moulin.domain.model import VLLM, Provenance, SourcePreference
from moulin.sources.fetch import choose_source, fetch_variant
from moulin.sources.files import describe_file
from tests.checkpoint_bytes import write_checkpoint

ANY = SourcePreference.ANY
TAKEN = {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "mine")


def fetch(folder: Path, store: Path):
    return fetch_variant(choose_source(describe_file(f"file:{folder}"), ANY, store), store)


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_a_folder_describes_itself(folder) -> None:
    model = describe_file(f"file:{folder}")
    [variant] = model.variants
    assert (model.title, model.runtime, model.runtime_of(variant)) == (
        "LlamaForCausalLM",
        VLLM,
        VLLM,
    )
    assert (variant.precision, variant.provenance) == ("BF16", Provenance.LOCAL)
    assert model.architecture.parameters == 300 * 64 + 64
    assert variant.size_bytes == sum((folder / name).stat().st_size for name in TAKEN)
    pipe = "sha256sum config.json model.safetensors tokenizer.json | sha256sum"
    said = subprocess.run(pipe, shell=True, cwd=folder, capture_output=True, text=True, check=True)
    assert said.stdout.split()[0] == variant.sha256


def test_it_is_linked_into_the_store_without_code_and_pickles(folder, tmp_path) -> None:
    store = tmp_path / "store"
    fetched = fetch(folder, store)
    assert names(fetched.path) == TAKEN
    assert all((Path(fetched.path) / name).samefile(folder / name) for name in TAKEN)
    assert fetched.size_bytes == sum((folder / name).stat().st_size for name in TAKEN)
    assert fetch(folder, store).is_cached
    again = describe_file(f"file:{fetched.path}")
    assert again.variants[0].sha256 == fetched.sha256


def test_the_hubs_cache_of_links_is_followed(folder, tmp_path) -> None:
    blob = tmp_path / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    fetched = fetch(folder, tmp_path / "store")
    stored = Path(fetched.path) / "model.safetensors"
    assert stored.samefile(blob)
    assert not stored.is_symlink()


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_a_file_damaged_in_the_store_is_fetched_again(folder, tmp_path, name) -> None:
    store = tmp_path / "store"
    stored = Path(fetch(folder, store).path) / name
    stored.unlink()
    stored.write_bytes(b"tampered")
    fetched = fetch(folder, store)
    assert not fetched.is_cached
    assert (Path(fetched.path) / name).samefile(folder / name)


def test_a_touched_file_is_verified_and_kept(folder, tmp_path) -> None:
    store = tmp_path / "store"
    os.utime(Path(fetch(folder, store).path) / "tokenizer.json", (1, 1))
    assert fetch(folder, store).is_cached


def test_a_folder_that_changed_or_went_since_is_refused(folder, tmp_path) -> None:
    store = tmp_path / "store"
    choice = choose_source(describe_file(f"file:{folder}"), ANY, store)
    (folder / "tokenizer.json").write_text('{"other": 1}')
    with pytest.raises(SourceError, match="verify a model file"):
        fetch_variant(choice, store)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(SourceUnavailable, match="gone"):
        fetch_variant(choice, store)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", None, "no .safetensors file"),
        ("model.safetensors", b"<html>", "model.safetensors: read safetensors"),
        ("config.json", b"{}", "states no layers"),
        (
            "model.safetensors.index.json",
            json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode(),
            "1 of its files are missing, first model-1",
        ),
    ],
)
def test_what_is_not_whole_is_refused(folder, name, content, words) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(SourceError, match=words):
        describe_file(f"file:{folder}")
