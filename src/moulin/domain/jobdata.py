"""What a job file says of the data of its task: secrets by name, inputs and outputs by address.

It decides which words are acceptable, as `jobfile` does for the rest; it never sees a value.
"""

import re
from collections.abc import Mapping
from typing import Final

from moulin.domain.secrets import TASK_SECRETS_MAX, is_secret_name
from moulin.domain.section import Keys, Section, section, shown
from moulin.domain.workload import ADDRESS, COPIES_MAX, PLACE, JobArray, TaskTemplate

VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
KEYS_OF_STORES: Final = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_PLACE: Final = re.compile(PLACE)
_ADDRESS: Final = re.compile(ADDRESS)
_ADDRESS_HINT: Final = "write s3://BUCKET/PATH, or an absolute path; keys belong under `secrets`"
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


def read_copies(top: Section, key: str) -> dict[str, str]:
    """Return which places are copied from or to which addresses; raises `InvalidSpec`.

    Written `{data: s3://bucket/set, model.bin: /share/model.bin}`.
    """
    found = top.text_map(key, form=_PLACE, items_max=COPIES_MAX)
    inner = Section(top.origin, top.at(key), found)
    for place, address in found.items():
        if not _ADDRESS.fullmatch(address):
            inner.refuse(place, f"{shown(address)} is no address", _ADDRESS_HINT)
    return found


def check_copies(top: Section, task: TaskTemplate, array: JobArray | None) -> None:
    """Raise `InvalidSpec` for keys in the clear, and for outputs that nobody could save.

    These are such as would replace one another, and those of a program in an image.
    """
    if task.outputs and task.image:
        top.refuse(
            "outputs",
            "those of a program in an image are not saved",
            "have the program write them where they belong, or leave `image` out",
        )
    open_keys = [name for name in KEYS_OF_STORES if name in task.env]
    if open_keys and (task.inputs or task.outputs):
        top.refuse(
            "envs",
            f"{open_keys[0]} would be kept in the clear",
            f"`moulin secrets set {open_keys[0]}`, and name it under `secrets`",
        )
    for place, address in task.outputs.items():
        if array is not None and "{index}" not in address:
            top.refuse(
                "outputs",
                f"{place}: every element would write to {shown(address)}",
                "put {index} into the address",
            )


def _secret(place: Section, key: str, default: str) -> str:
    name = place.text(key, default)
    if not is_secret_name(name):
        place.refuse(key, f"{shown(name)} cannot be the name of a secret")
    return name
