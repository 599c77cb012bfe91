"""The doctor on a machine with trouble made for it."""

import socket

import pytest

from moulin.app.doctor import State, examine
from moulin.app.listening import choose_port, is_well
from moulin.app.settings import Settings
from moulin.domain.errors import PortInUse


def checks(**settings):
    return {check.name: check for check in examine(Settings(**settings), is_offline=True)}


def test_a_taken_port_fails_and_names_the_flag(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = checks(data=str(tmp_path), gateway_port=port)
    assert found["gateway port"].state is State.FAIL
    assert str(port) in found["gateway port"].message
    assert "--gateway-port" in found["gateway port"].hint


def test_each_check_has_a_state_and_trouble_has_a_hint(tmp_path):
    found = checks(data=str(tmp_path / "not" / "yet"), control_port=0, gateway_port=0)
    assert {"python", "disk", "memory limits", "accelerators", "clock"} <= set(found)
    assert found["python"].state is State.OK
    for check in found.values():
        assert check.message
        assert check.hint or check.state is State.OK


@pytest.mark.parametrize(
    ("programs", "state", "word"),
    [
        ((), State.WARN, "no container tool"),
        (("podman",), State.WARN, "Podman is here, without crun"),
        (("podman", "crun", "catatonit"), State.OK, "images run in Podman (/"),
        (("apptainer",), State.OK, "images run in Apptainer (/"),
    ],
)
def test_the_container_tool_is_named(programs, state, word, tmp_path, monkeypatch):
    for name in programs:
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = checks(data=str(tmp_path), control_port=0, gateway_port=0)["containers"]
    assert (found.state, word in found.message) == (state, True)
    assert bool(found.hint) is (state is State.WARN)


def test_a_disk_that_is_not_ours():
    assert checks(data="/proc/none")["disk"].state is not State.OK


def test_ports():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            choose_port(port, name="probe", flag="--probe-port")
    assert choose_port(0, name="probe", flag="") > 0


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"SSH-2.0-x\r\n200", False),
        (b"", False),
    ],
    ids=["well", "not yet", "another program", "nothing"],
)
def test_what_answers_is_asked_how_it_is(answer, verdict):
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert is_well(server.getsockname()[1]) is verdict
        thread.join()
    assert not is_well(1)
