"""Keys: made, recognised, rejected for one reason that stays inside."""

import pytest

from moulin.domain.errors import InvariantViolated, Unauthenticated
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.principal import ApiKey, Principal, Role
from moulin.identity import Rejection, digest, examine, identify, is_well_formed, make_key

PEPPER = b"p" * 32
NOW_NS = 1_790_000_000_000_000_000
SECRET = make_key(bytes(range(20)))


def keyring(**changes) -> dict[str, ApiKey]:
    values: dict = {
        "id": KeyId("key_1"),
        "name": "robot",
        "role": Role.MEMBER,
        "organisation": OrganisationId("acme"),
        "project": ProjectId("alpha"),
        "digest": digest(PEPPER, SECRET),
    }
    key = ApiKey(**(values | changes))
    return {key.digest: key}


@pytest.mark.parametrize("size", [20, 24, 30, 64])
def test_keys_are_well_formed_and_of_one_length_per_size(size):
    keys = [make_key(filler * size) for filler in (b"\x00", b"\x5a", b"\xff")]
    assert all(is_well_formed(key) for key in keys)
    assert len({len(key) for key in keys}) == 1
    assert len(set(keys)) == 3
    assert all(key.isascii() and key.removeprefix("mk_").isalnum() for key in keys)


def test_little_entropy_is_a_bug():
    with pytest.raises(InvariantViolated):
        make_key(bytes(19))


def test_every_single_typing_error_is_seen_before_any_lookup():
    for place in range(len(SECRET)):
        for letter in "0aZ_":
            if SECRET[place] != letter:
                assert not is_well_formed(SECRET[:place] + letter + SECRET[place + 1 :])


def test_a_digest_depends_on_key_and_pepper():
    assert digest(PEPPER, SECRET) != digest(PEPPER, SECRET[:-1])
    assert digest(PEPPER, SECRET) != digest(b"other", SECRET)
    assert len(digest(PEPPER, SECRET)) == 64


def test_a_valid_key_names_its_principal():
    assert identify(SECRET, keyring(), NOW_NS, PEPPER) == Principal(
        key=KeyId("key_1"),
        name="robot",
        role=Role.MEMBER,
        organisation=OrganisationId("acme"),
        project=ProjectId("alpha"),
    )


@pytest.mark.parametrize(
    ("credential", "ring", "reason"),
    [
        ("", keyring(), Rejection.MISSING),
        ("mk_", keyring(), Rejection.MALFORMED),
        ("x" * 10_000, keyring(), Rejection.MALFORMED),
        (SECRET + "\n", keyring(), Rejection.MALFORMED),
        (SECRET.replace("mk_", "mk-"), keyring(), Rejection.MALFORMED),
        (make_key(bytes(20)), keyring(), Rejection.UNKNOWN),
        (SECRET, {}, Rejection.UNKNOWN),
        (SECRET, keyring(revoked_at_ns=1), Rejection.REVOKED),
        (SECRET, keyring(expires_at_ns=NOW_NS), Rejection.EXPIRED),
        (SECRET, keyring(revoked_at_ns=1, expires_at_ns=1), Rejection.REVOKED),
    ],
)
def test_rejections_differ_inside_and_not_outside(credential, ring, reason):
    assert examine(credential, ring, NOW_NS, PEPPER) is reason
    with pytest.raises(Unauthenticated) as raised:
        identify(credential, ring, NOW_NS, PEPPER)
    assert raised.value.message == "identify the caller: no valid API key was shown"
    assert raised.value.details == {}


def test_a_key_works_until_the_instant_it_expires():
    ring = keyring(expires_at_ns=NOW_NS + 1)
    assert not isinstance(examine(SECRET, ring, NOW_NS, PEPPER), Rejection)
    assert examine(SECRET, ring, NOW_NS + 1, PEPPER) is Rejection.EXPIRED


def test_an_entry_under_a_wrong_digest_is_not_believed():
    (key,) = keyring(digest="0" * 64).values()
    assert examine(SECRET, {digest(PEPPER, SECRET): key}, NOW_NS, PEPPER) is Rejection.UNKNOWN
