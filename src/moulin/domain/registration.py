"""A replica's own word that it serves, and until when that is believed.

A replica elsewhere renews its registration every few seconds. One that runs out says that nobody knows
whether the replica can be reached, and nothing about its end.
"""

import re
from dataclasses import dataclass
from typing import Final

from moulin.domain.ids import AttemptId

HEARTBEAT_S: Final = 10
TTL_S: Final = 30
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:]{2,39}\]|[A-Za-z0-9_.-]{1,253}):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationWanted:
    """What a replica says: the model it serves, host:port of its door, since when."""

    model: str
    address: str
    started_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A replica's word, believed until `expires_at_ns`; it is renewed every `heartbeat_s`."""

    attempt: AttemptId
    model: str
    address: str
    started_at_ns: int
    expires_at_ns: int
    heartbeat_s: int = HEARTBEAT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationPage:
    """The registrations of replicas that may still run."""

    items: tuple[Registration, ...]


def is_door(address: str) -> bool:
    """Say whether a text is an address that a gateway can connect to.

    >>> is_door("gpu-7:41000"), is_door("[fd00::7]:80"), is_door("10.0.0.7"), is_door("a b:80")
    (True, True, False, False)
    """
    found = _ADDRESS.fullmatch(address)
    return found is not None and 0 < int(found[2]) < 1 << 16
