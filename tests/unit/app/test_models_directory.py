"""Where model files are kept: shared by a user's factories, else with the data."""

from moulin.app.datadir import models_directory


def test_factories_of_one_user_share_model_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = models_directory(tmp_path / "data")
    assert found == tmp_path / "cache" / "moulin" / "models"
    assert found.is_dir()
    assert models_directory(tmp_path / "other") == found


def test_without_a_cache_they_stay_with_the_data(tmp_path, monkeypatch):
    in_the_way = tmp_path / "cache"
    in_the_way.write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    assert models_directory(tmp_path / "data") == tmp_path / "data"
