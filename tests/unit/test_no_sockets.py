"""The guard of tests/conftest.py works: a test in this folder cannot reach a network."""

import socket

import pytest


@pytest.mark.parametrize("address", [("127.0.0.1", 9), ("127.0.0.1", 0)], ids=["port 9", "port 0"])
def test_connect_and_bind_are_refused(address):
    with socket.socket() as link:
        with pytest.raises(AssertionError, match="may not open sockets"):
            link.connect(address)
        with pytest.raises(AssertionError, match="may not open sockets"):
            link.bind(address)


def test_create_connection_and_names_are_refused():
    with pytest.raises(AssertionError, match="may not open sockets"):
        socket.create_connection(("localhost", 9), timeout=1)
