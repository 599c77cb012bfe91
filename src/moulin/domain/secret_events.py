"""The part of the log's vocabulary that only secrets need: set, and gone.

The same rules hold as in `events.py`, which names these kinds with all others. What the log holds of
a value is a ciphertext whose key is elsewhere; without that key it is noise.
"""

from dataclasses import dataclass

from moulin.domain.ids import ProjectId
from moulin.domain.secrets import SealedSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSet:
    """A project has this secret from here on; what had its name before is gone."""

    secret: SealedSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretDeleted:
    """A project's secret is gone, and with its key every ciphertext of it."""

    project: ProjectId
    name: str
    by: str
