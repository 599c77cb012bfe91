"""Where credentials come from, in order, and which files are not believed."""

import json

import pytest

from moulin.domain.errors import InvalidRequest, NotFound
from moulin.sdk import Credentials, find_credentials, read_credentials

WHOLE = {
    "control_url": "http://127.0.0.1:1234/",
    "gateway_url": "http://127.0.0.1:1235",
    "api_key": "mk_file",
    "project": "alpha",
}


def write(path, data, mode=0o600):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    path.chmod(mode)
    return path


def test_a_file_says_everything(tmp_path):
    found = find_credentials(file=write(tmp_path / "c.json", WHOLE), environment={})
    assert found == Credentials(
        control_url="http://127.0.0.1:1234",
        gateway_url="http://127.0.0.1:1235",
        api_key="mk_file",
        project="alpha",
    )


def test_arguments_come_before_the_environment_and_that_before_the_file(tmp_path):
    file = write(tmp_path / "c.json", WHOLE)
    env = {"MOULIN_URL": "http://env", "MOULIN_API_KEY": "mk_env", "MOULIN_PROJECT": "beta"}
    found = find_credentials(control_url="http://arg", file=file, environment=env)
    assert (found.control_url, found.api_key, found.project) == ("http://arg", "mk_env", "beta")
    named = find_credentials(environment={"MOULIN_CREDENTIALS": str(file)})
    assert named.api_key == "mk_file"


def test_the_file_of_this_folder_is_found_unless_something_else_is_said(tmp_path, monkeypatch):
    (tmp_path / ".moulin").mkdir()
    write(tmp_path / ".moulin" / "credentials.json", WHOLE)
    monkeypatch.chdir(tmp_path)
    assert find_credentials(environment={}).api_key == "mk_file"
    # A key of this folder's factory never goes to an address from elsewhere.
    assert find_credentials(environment={"MOULIN_URL": "http://elsewhere"}).api_key == ""


def test_nothing_at_all_is_the_default_address_without_a_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_credentials(environment={}) == Credentials()


def test_the_key_is_never_shown():
    assert "mk_secret" not in repr(Credentials(api_key="mk_secret"))


@pytest.mark.parametrize("data", ["", "[]", "{", '{"api_key": 3}', "\udce9"])
def test_files_of_another_form_are_refused(tmp_path, data):
    path = tmp_path / "c.json"
    path.write_bytes(data.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(InvalidRequest):
        read_credentials(path)


def test_a_file_that_others_may_read_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="others") as raised:
        read_credentials(write(tmp_path / "c.json", WHOLE, mode=0o640))
    assert raised.value.hint.startswith("chmod 600")


def test_a_named_file_must_be_there(tmp_path):
    with pytest.raises(NotFound) as raised:
        read_credentials(tmp_path / "none.json")
    assert "moulin up" in raised.value.hint
