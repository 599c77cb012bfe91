"""Whose request it was: what is recorded of the name a request gives its user.

Names of users are personal data. Recorded is an HMAC under the installation's pepper, another one in
every project, unless the operator declared that names are kept; who has the pepper can look a name
up, and nobody can read one from what is stored.
"""

import hashlib
import hmac
from typing import Final

from moulin.domain.errors import InvalidRequest
from moulin.domain.limits import NAMELESS, USER_CHARACTERS_MAX

PREFIX: Final = "usr_"
_CONTEXT: Final = b"moulin user v1\n"
_DIGEST_BYTES: Final = 16


def recorded_user(pepper: bytes, project: str, name: str, *, keeps_name: bool) -> str:
    """Return what is recorded of a user's name; requests without one are all one user's.

    Raises `InvalidRequest` for a name that is too long, or that could not be shown if it is kept.

    >>> recorded_user(b"pepper", "lab", "", keeps_name=False)
    'usr_none'
    """
    if not name:
        return NAMELESS
    if len(name) > USER_CHARACTERS_MAX:
        raise _unusable(f"at most {USER_CHARACTERS_MAX} characters")
    if not keeps_name:
        return PREFIX + _digest(pepper, project, name)
    if not name.isprintable():
        raise _unusable("printable")
    return name


def names_of_user(pepper: bytes, project: str, name: str) -> tuple[str, ...]:
    """Return under which names a user may be recorded: who looks need not know how names are kept."""
    if name.startswith(PREFIX):
        return (name,)
    return (recorded_user(pepper, project, name, keeps_name=False), name)


def _digest(pepper: bytes, project: str, name: str) -> str:
    # The project's length keeps two pairs of names from being one text.
    text = f"{len(project)}\n{project}\n{name}".encode("utf-8", "surrogatepass")
    return hmac.new(pepper, _CONTEXT + text, hashlib.sha256).hexdigest()[: 2 * _DIGEST_BYTES]


def _unusable(expected: str) -> InvalidRequest:
    return InvalidRequest(
        f"'user' must be {expected}", details={"param": "user", "code": "invalid_value"}
    )
