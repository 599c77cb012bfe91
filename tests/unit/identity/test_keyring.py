"""The keyring as a fold of the log."""

from moulin.domain.events import EpochOpened, Event, KeyCreated, KeyRevoked, Payload
from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.principal import ApiKey, Role
from moulin.identity import Keyring, fold_keyring

KEY = ApiKey(
    id=KeyId("key_1"),
    name="robot",
    role=Role.MEMBER,
    organisation=OrganisationId("acme"),
    project=ProjectId("alpha"),
    digest="d",
)


def folded(*payloads: Payload) -> Keyring:
    keyring = Keyring()
    for number, payload in enumerate(payloads, start=1):
        event = Event(sequence=number, epoch=1, at_ns=100 + number, actor="a", payload=payload)
        fold_keyring(keyring, event)
    return keyring


def test_a_created_key_is_found_by_digest_and_by_id():
    keyring = folded(KeyCreated(key=KEY))
    assert keyring.by_digest == {"d": KEY}
    assert keyring.by_id == {"key_1": KEY}


def test_a_revoked_key_stays_known_with_the_time_of_its_first_revocation():
    keyring = folded(KeyCreated(key=KEY), KeyRevoked(key="key_1"), KeyRevoked(key="key_1"))
    assert keyring.by_digest["d"].revoked_at_ns == 102
    assert keyring.by_id["key_1"] is keyring.by_digest["d"]


def test_other_events_and_unknown_keys_change_nothing():
    opened = EpochOpened(epoch=1, boot_id="b", version="v")
    assert folded(opened, KeyRevoked(key="key_2")) == Keyring()
