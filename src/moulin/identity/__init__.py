"""Who is calling and what they may do: keys, the keyring and the table of permissions."""

from moulin.identity.keyring import Keyring, fold_keyring
from moulin.identity.keys import (
    Rejection,
    digest,
    examine,
    identify,
    is_well_formed,
    make_key,
    webhook_secret,
)
from moulin.identity.passes import make_pass, read_pass
from moulin.identity.permissions import PERMISSIONS, Action, Reach, permits, reach
from moulin.identity.users import names_of_user, recorded_user

__all__ = [
    "PERMISSIONS",
    "Action",
    "Keyring",
    "Reach",
    "Rejection",
    "digest",
    "examine",
    "fold_keyring",
    "identify",
    "is_well_formed",
    "make_key",
    "make_pass",
    "names_of_user",
    "permits",
    "reach",
    "read_pass",
    "recorded_user",
    "webhook_secret",
]
