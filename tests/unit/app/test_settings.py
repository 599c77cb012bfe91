"""Settings: the order of their origins, and what a wrong one is answered with."""

import pytest

from moulin.app.settings import FILE_NAME, Settings, resolve, table
from moulin.domain.errors import InvalidRequest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / FILE_NAME).write_text('control_port = 9000\nnodes = 2\ndata = "here"\n', "utf-8")
    return tmp_path


def test_each_origin_gives_way_to_the_next(folder):
    found = resolve(
        {"nodes": 4, "country": None},
        environment={"MOULIN_NODES": "3", "MOULIN_CONTROL_PORT": "9001"},
        folder=folder,
    )
    assert found.settings == Settings(control_port=9001, nodes=4, data="here")
    assert found.origins["nodes"] == "flag"
    assert found.origins["control_port"] == "MOULIN_CONTROL_PORT"
    assert found.origins["data"] == str(folder / FILE_NAME)
    assert found.origins["gateway_port"] == "default"
    assert found.origins["country"] == "default"


def test_a_named_file_comes_before_the_one_here(folder, tmp_path):
    named = tmp_path / "other.toml"
    named.write_text("nodes = 7\n", "utf-8")
    found = resolve(environment={"MOULIN_CONFIG": str(named)}, folder=folder)
    assert found.settings == Settings(nodes=7)


def test_the_users_own_file_comes_last(tmp_path):
    (tmp_path / "moulin").mkdir()
    (tmp_path / "moulin" / FILE_NAME).write_text("metering_interval_s = 2\n", "utf-8")
    found = resolve(environment={"XDG_CONFIG_HOME": str(tmp_path)}, folder=tmp_path)
    assert found.settings.metering_interval_s == 2.0


def test_without_anything_the_defaults_apply(tmp_path):
    assert resolve(environment={}, folder=tmp_path).settings == Settings()


@pytest.mark.parametrize(
    ("flags", "environment", "message", "hint"),
    [
        ({"nodes": -1}, {}, "nodes must be a whole number from 0 to 4096", "nodes to divide"),
        ({"control_port": 70000}, {}, "control_port must be a whole number from 0 to 65535", "0"),
        ({"control_port": True}, {}, "control_port must be a whole number", ""),
        ({"control_port": 1.5}, {}, "control_port must be a whole number", ""),
        ({}, {"MOULIN_CONTROL_PORT": "x"}, "settings from MOULIN_CONTROL_PORT", ""),
        ({}, {"MOULIN_METERING_INTERVAL_S": "nan"}, "must be a number", ""),
        ({"country": 7}, {}, "country must be a text", ""),
        ({}, {"MOULIN_INSECURE_PLAIN_HTTP": "perhaps"}, "must be true or false", "without TLS"),
        ({"contry": "FR"}, {}, "there is no 'contry'", "did you mean country?"),
        ({"frobnicate": 1}, {}, "there is no 'frobnicate'", "known: data"),
        ({}, {"MOULIN_CONFIG": "absent.toml"}, "settings from absent.toml", "MOULIN_CONFIG"),
    ],
    ids=range(11),
)
def test_wrong_settings(tmp_path, flags, environment, message, hint):
    with pytest.raises(InvalidRequest) as caught:
        resolve(flags, environment=environment, folder=tmp_path)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(("word", "found"), [("true", True), ("YES", True), ("0", False)])
def test_a_yes_and_a_no(tmp_path, word, found):
    environment = {"MOULIN_INSECURE_PLAIN_HTTP": word}
    assert resolve(environment=environment, folder=tmp_path).settings.insecure_plain_http is found


def test_a_broken_file(tmp_path):
    (tmp_path / FILE_NAME).write_text("control_port = ", "utf-8")
    with pytest.raises(InvalidRequest, match="read settings from"):
        resolve(environment={}, folder=tmp_path)


def test_every_setting_is_explained():
    assert all(meaning and variable.startswith("MOULIN_") for _, _, variable, meaning in table())
