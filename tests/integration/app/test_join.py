"""The scripts that make servers nodes, run by a real shell with a stand-in for `ray`."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from moulin.app.join import LOCK, HeadStarter, ray_place, write_head, write_join
from moulin.domain.errors import InvalidSpec, LocalError
from tests.conformance.engine_bench import wait_until

TOKEN = "f" * 64
SEES = '#!/bin/sh\necho "$@" > "$0.said"\necho "$RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH" >> "$0.said"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A server on which the locked Ray is installed already, as far as the script can see."""
    place = tmp_path / "home"
    (place / "bin").mkdir(parents=True)
    ray = place / "bin" / "ray"
    ray.write_text(SEES)
    ray.chmod(0o700)
    (place / "lock.txt").write_text(LOCK.read_text())
    return place


def run(script: Path, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "MOULIN_RAY_HOME": str(home)}
    with script.open("rb") as text:
        return subprocess.run(
            ["sh", "-s"],
            stdin=text,
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )


def test_a_server_joins_with_the_token_in_a_file(tmp_path, home):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    place = ray_place("p", {"address": "http://10.0.0.1:8265", "token_file": str(token)})
    script = write_join(place, tmp_path / "made")
    assert stat.S_IMODE(script.stat().st_mode) == 0o600
    done = run(script, home, MOULIN_NODE="box-7", MOULIN_RAY_OPTIONS="--num-gpus=8")
    assert (done.returncode, done.stderr) == (0, "")
    said = (home / "bin" / "ray.said").read_text()
    assert said.splitlines() == [
        "start --address=10.0.0.1:6379 --labels=moulin-node=box-7 --num-gpus=8",
        f"token {home}/token",
    ]
    assert (home / "token").read_text() == f"{TOKEN}\n"
    assert stat.S_IMODE((home / "token").stat().st_mode) == 0o600


def test_a_server_with_too_old_a_python_is_told_so(tmp_path, home):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    (home / "lock.txt").unlink()
    place = ray_place("p", {"address": "http://10.0.0.1:8265", "token_file": str(token)})
    done = run(write_join(place, tmp_path), home, PYTHON="false")
    assert done.returncode == 1
    assert "Python 3.11 or later" in done.stderr
    assert not (home / "bin" / "ray.said").exists()


def test_a_head_gets_a_token_once(tmp_path):
    token = tmp_path / "ray" / "token"
    place = ray_place("p", {"address": "http://[fe80::1]:9000", "token_file": str(token)})
    text = write_head(place, tmp_path).read_text()
    first = token.read_text()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(first) == 64
    assert first in text
    assert "--dashboard-host=fe80::1 --dashboard-port=9000" in text
    assert place.at(7) == "http://[fe80::1]:7"
    write_head(place, tmp_path)
    assert token.read_text() == first


def test_what_cannot_be_joined(tmp_path):
    settings = {"token_file": str(tmp_path / "none")}
    for host in ("localhost", "127.0.0.1", "[::1]"):
        place = ray_place("p", settings | {"address": f"http://{host}:1"})
        with pytest.raises(InvalidSpec, match="only this machine"):
            write_join(place, tmp_path)
    with pytest.raises(LocalError, match="read the token"):
        write_join(ray_place("p", settings | {"address": "http://10.0.0.1:1"}), tmp_path)
    for address in ("10.0.0.1:1", "ftp://10.0.0.1", "http://"):
        with pytest.raises(InvalidSpec):
            ray_place("p", {"address": address})
    with pytest.raises(InvalidSpec):
        ray_place("p", {"gcs_port": "one"})


def test_a_head_is_started_in_the_background_and_not_again_and_again(tmp_path, home, monkeypatch):
    monkeypatch.setenv("MOULIN_RAY_HOME", str(home))
    place = ray_place("p", {"token_file": str(tmp_path / "token")})
    start = HeadStarter(place, tmp_path / "p")
    assert start() == "its head is being started"
    wait_until(lambda: "does not start" in start())
    said = (home / "bin" / "ray.said").read_text()
    assert said.startswith("start --head --port=6379 --node-ip-address=127.0.0.1 ")
    assert stat.S_IMODE((tmp_path / "p" / "head.sh").stat().st_mode) == 0o600
