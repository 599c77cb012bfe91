"""Keys and logins as text: what is one, and what is not."""

import base64

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.lease import Login, check_ssh_key, checked_lease, read_login
from moulin.domain.workload import LeaseSpec


def key(kind="ssh-ed25519", body=bytes(36)):
    name = kind.encode()
    blob = len(name).to_bytes(4) + name + body
    return f"{kind} {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa", "sk-ssh-ed25519@openssh.com"])
def test_a_key_is_kept_in_one_form(kind):
    assert check_ssh_key(f"  {key(kind)}   ada@mill  ") == f"{key(kind)} ada@mill"
    assert check_ssh_key(key(kind)) == key(kind)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 !!!!",
        f"-----BEGIN OPENSSH {'PRIVATE'} KEY-----",
        key("ssh-dss"),
        f'command="rm" {key()}',
        f"{key()}\n{key()}",
        f"ssh-rsa {key().split()[1]}",
        key(body=b""),
        f"{key()} {'x' * 9000}",
    ],
)
def test_what_is_no_key(text):
    with pytest.raises(InvalidSpec):
        check_ssh_key(text)


def test_a_lease_has_keys_each_once_and_an_end():
    twice = LeaseSpec(ssh_keys=(key(), f" {key()}"))
    assert checked_lease(twice, 60).ssh_keys == (key(),)
    for spec, limit_s in ((twice, 0), (LeaseSpec(ssh_keys=()), 60)):
        with pytest.raises(InvalidSpec):
            checked_lease(spec, limit_s)


@pytest.mark.parametrize(
    ("address", "login"),
    [
        (
            "10.0.0.7:4022 mill ssh-ed25519 AAAA",
            Login(host="10.0.0.7", port=4022, user="mill", host_key="ssh-ed25519 AAAA"),
        ),
        (
            "[::1]:22 a.b-c ssh-ed25519 AAAA",
            Login(host="::1", port=22, user="a.b-c", host_key="ssh-ed25519 AAAA"),
        ),
        ("", None),
        ("10.0.0.7:4022", None),
        ("10.0.0.7:4022 mill ssh-ed25519 AAAA\n-o ProxyCommand=x", None),
        ("-oProxyCommand=x y:1 mill ssh-ed25519 AAAA", None),
        ("-v:22 mill ssh-ed25519 AAAA", None),
        ("10.0.0.7:22 -Fmill ssh-ed25519 AAAA", None),
    ],
)
def test_where_one_logs_in(address, login):
    assert read_login(address) == login
