"""Which keys exist, folded from the log: revoked ones stay, so that they are known as revoked.

It never sees a secret and never decides whether a key is valid; see `keys.examine`.
"""

from dataclasses import dataclass, field, replace

from moulin.domain.events import Event, KeyCreated, KeyRevoked, KeyUpdated
from moulin.domain.principal import ApiKey


@dataclass(slots=True)
class Keyring:
    """Every key ever issued, by digest (for callers) and by id (for owners)."""

    by_digest: dict[str, ApiKey] = field(default_factory=dict)
    by_id: dict[str, ApiKey] = field(default_factory=dict)


def fold_keyring(keyring: Keyring, event: Event) -> None:
    """Apply one event in place; what is said of a key nobody issued changes nothing.

    Readers in other threads may look up at any time: each entry is replaced whole.
    """
    match event.payload:
        case KeyCreated(key=key):
            _put(keyring, key)
        case KeyUpdated(key=key):
            known = keyring.by_id.get(key.id)
            if known is not None:
                # Neither the secret nor a revocation changes by an update.
                _put(keyring, replace(key, digest=known.digest, revoked_at_ns=known.revoked_at_ns))
        case KeyRevoked(key=id):
            known = keyring.by_id.get(id)
            if known is not None and known.revoked_at_ns == 0:
                _put(keyring, replace(known, revoked_at_ns=event.at_ns))
        case _:
            pass


def _put(keyring: Keyring, key: ApiKey) -> None:
    keyring.by_digest[key.digest] = key
    keyring.by_id[key.id] = key
