"""Files of the operator: described from their header, linked, and refused when damaged."""

import hashlib
from pathlib import Path

import pytest

from moulin.domain.errors import SourceError, SourceUnavailable
from moulin.domain.model import Provenance, SourcePreference
from moulin.sources.fetch import choose_source, fetch_variant
from moulin.sources.files import describe_file
from tests.gguf_bytes import TINY, gguf

ANY = SourcePreference.ANY


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "my model.gguf"
    path.write_bytes(gguf(padding=5000))
    return path


def test_a_file_describes_itself(path) -> None:
    model = describe_file(f"file:{path}")
    assert (model.title, model.licence, model.name) == ("Tiny", "apache-2.0", f"file:{path}")
    variant = model.variants[0]
    assert variant.provenance is Provenance.LOCAL
    assert variant.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert variant.size_bytes == path.stat().st_size
    assert model.architecture.context_max_tokens == 128


def test_a_licence_that_is_not_stated_is_not_invented(tmp_path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf({k: v for k, v in TINY.items() if not k.startswith("general.li")}))
    assert describe_file(f"file:{path}").licence == "not stated"


def test_a_file_is_linked_into_the_store(path, tmp_path) -> None:
    store = tmp_path / "store"
    model = describe_file(f"file:{path}")
    fetched = fetch_variant(choose_source(model, ANY, store), store)
    assert Path(fetched.path).samefile(path)
    assert fetched.provenance is Provenance.LOCAL
    assert fetch_variant(choose_source(model, ANY, store), store).is_cached


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"<html>not a model</html>", "does not begin with GGUF"),
        (gguf()[:-200], "cut off"),
        (gguf()[:100], "end in the middle"),
        (gguf(TINY | {"split.count": 3}), "one of 3 pieces"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, content, words) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        describe_file(f"file:{path}")
    assert "broken.gguf" in caught.value.message


@pytest.mark.parametrize("name", ["gone.gguf", "."])
def test_missing_files_and_folders_are_refused(tmp_path, name) -> None:
    with pytest.raises(SourceUnavailable, match="read"):
        describe_file(f"file:{tmp_path / name}")


def test_a_file_that_vanished_since_is_named(path, tmp_path) -> None:
    model = describe_file(f"file:{path}")
    path.unlink()
    store = tmp_path / "store"
    with pytest.raises(SourceUnavailable, match="gone"):
        fetch_variant(choose_source(model, ANY, store), store)


@pytest.mark.parametrize("damage", [b"tampered", b""])
def test_a_file_damaged_in_the_store_is_fetched_again(path, tmp_path, damage) -> None:
    store = tmp_path / "store"
    model = describe_file(f"file:{path}")
    choice = choose_source(model, ANY, store)
    good = path.read_bytes()
    stored = Path(fetch_variant(choice, store).path)
    stored.unlink()
    stored.write_bytes(damage)
    fetched = fetch_variant(choice, store)
    assert not fetched.is_cached
    assert Path(fetched.path).read_bytes() == good


def test_a_touched_file_is_verified_and_kept(path, tmp_path) -> None:
    store = tmp_path / "store"
    choice = choose_source(describe_file(f"file:{path}"), ANY, store)
    stored = Path(fetch_variant(choice, store).path)
    stored.touch()
    assert fetch_variant(choice, store).is_cached


def test_a_store_without_links_gets_a_copy(path, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    store = tmp_path / "store"
    fetched = fetch_variant(choose_source(describe_file(f"file:{path}"), ANY, store), store)
    assert not Path(fetched.path).samefile(path)
    assert Path(fetched.path).read_bytes() == path.read_bytes()
