"""What a job file says of the data of its task: secrets by name.

It decides which words are acceptable, as `jobfile` does for the rest; it never sees a value.
"""

import re
from collections.abc import Mapping
from typing import Final

from moulin.domain.secrets import TASK_SECRETS_MAX, is_secret_name
from moulin.domain.section import Keys, Section, section, shown

VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
SECRET_KEYS: Final = Keys(("file",), {"fichier": "file"})


def read_secrets(top: Section) -> tuple[dict[str, str], dict[str, str]]:
    """Return which variables hold which secrets, and which hold the path of a file with one.

    Written `[HF_TOKEN]`, or `{HF_TOKEN: hugging-face, TLS_KEY: {file: tls-key}}`.
    Raises `InvalidSpec` for another form.
    """
    value = top.body.get("secrets")
    if not isinstance(value, Mapping):
        value = {name: name for name in top.texts("secrets", items_max=TASK_SECRETS_MAX)}
    if len(value) > TASK_SECRETS_MAX:
        top.refuse("secrets", f"{len(value)} of them, at most {TASK_SECRETS_MAX} are allowed")
    inner = Section(top.origin, top.at("secrets"), {str(key): each for key, each in value.items()})
    plain: dict[str, str] = {}
    files: dict[str, str] = {}
    for variable, wanted in inner.body.items():
        if not VARIABLE.fullmatch(variable):
            inner.refuse(variable, "is no name of a variable", "write `secrets: {VARIABLE: name}`")
        if isinstance(wanted, Mapping):
            child = section(wanted, SECRET_KEYS, origin=inner.origin, path=inner.at(variable))
            files[variable] = _secret(child, "file", variable)
        else:
            plain[variable] = _secret(inner, variable, variable)
    return plain, files


def _secret(place: Section, key: str, default: str) -> str:
    name = place.text(key, default)
    if not is_secret_name(name):
        place.refuse(key, f"{shown(name)} cannot be the name of a secret")
    return name
