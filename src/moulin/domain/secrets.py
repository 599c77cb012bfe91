"""Secrets of a project as values: sealed where anything is kept, named where anything is told.

A value in the clear exists in a request on its way in and in a task's environment, nowhere between.
How one is sealed is `moulin.sources.vault`'s business. Decision 0041.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.ids import OrganisationId, ProjectId

SECRETS_MAX: Final = 200
SECRET_NAME: Final = r"[A-Za-z_][A-Za-z0-9_.-]{0,62}"  # noqa: S105 - a form, no secret
# What Linux takes as one entry of an environment (MAX_ARG_STRLEN), less a long name.
SECRET_BYTES_MAX: Final = 64 * 1024
# Everything one task is given, so that its environment has room for it.
TASK_SECRETS_MAX: Final = 64
_NAME: Final = re.compile(SECRET_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSecret:
    """A secret as the log keeps it; `ciphertext` can be read while the key of `id` is there.

    Setting a name again makes another id with another key, and the former key is destroyed.
    """

    id: str
    organisation: OrganisationId
    project: ProjectId
    name: str
    ciphertext: bytes = field(repr=False)
    set_by: str
    set_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretInfo:
    """What is told of a secret."""

    project: str
    name: str
    set_by: str
    set_at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretPage:
    """Secrets of a project by name."""

    items: tuple[SecretInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretWanted:
    """The value a secret is to have."""

    value: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterRotated:
    """How many secrets' keys are now wrapped with a new master key; the former one is gone."""

    secrets: int


def is_secret_name(name: str) -> bool:
    """Say whether a secret can be called so."""
    return _NAME.fullmatch(name) is not None


def info_of(sealed: SealedSecret) -> SecretInfo:
    """Return what is told of a secret."""
    return SecretInfo(
        project=sealed.project,
        name=sealed.name,
        set_by=sealed.set_by,
        set_at_ns=sealed.set_at_ns,
    )
