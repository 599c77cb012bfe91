"""Properties of keys: distinct entropy, distinct keys; nothing else is accepted."""

from hypothesis import given
from hypothesis import strategies as st

from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.principal import ApiKey, Role
from moulin.identity import Rejection, digest, examine, is_well_formed, make_key

ENTROPY = st.binary(min_size=20, max_size=20)


@given(ENTROPY, ENTROPY)
def test_keys_differ_exactly_when_their_entropy_does(one, other):
    assert (make_key(one) == make_key(other)) == (one == other)


@given(st.binary(min_size=20, max_size=40))
def test_what_is_made_is_well_formed(entropy):
    assert is_well_formed(make_key(entropy))


@given(st.text(max_size=60) | st.from_regex(r"mk_[0-9A-Za-z]{33,60}", fullmatch=True), ENTROPY)
def test_only_the_key_itself_is_accepted(shown, entropy):
    secret = make_key(entropy)
    key = ApiKey(
        id=KeyId("key_1"),
        name="k",
        role=Role.VIEWER,
        organisation=OrganisationId("o"),
        project=ProjectId("p"),
        digest=digest(b"pepper", secret),
    )
    found = examine(shown, {key.digest: key}, 1, b"pepper")
    assert isinstance(found, Rejection) or shown == secret
    assert examine(secret, {key.digest: key}, 1, b"pepper") is key
