"""What an image is called: where it is, told by how it is written; looks for nothing.

Which tool takes which form is the engines' knowledge; the forms are here so that a job can be refused
before it is given to one that cannot. Decision 0045.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_REGISTRY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_SCHEMES: Final = ("oras://", "library://")
_ARCHIVES: Final = ("oci-archive:/", "docker-archive:/")
# A path with one of these cannot be said to every tool as a mount.
UNMOUNTABLE: Final = frozenset(":,\n\0")


class Form(StrEnum):
    """Where an image is."""

    REGISTRY = "a registry's image"
    DIRECTORY = "a directory"
    ARCHIVE = "an image archive"
    SIF = "a SIF file"
    SQUASHFS = "a SquashFS file"
    APPTAINERS_OWN = "an address that only Apptainer knows"


@dataclass(frozen=True, slots=True)
class Image:
    """An image; `name` is a registry's without a scheme, else what was written."""

    form: Form
    name: str


def read_image(written: str) -> Image | None:
    """Return what was written for `image`, None when it is no image of any kind.

    >>> read_image("docker://ghcr.io/mill/grind:2").name
    'ghcr.io/mill/grind:2'
    """
    if any(character in UNMOUNTABLE - {":"} for character in written):
        return None
    if written.startswith("/"):
        return Image(_form_of_path(written), written)
    if written.startswith(_ARCHIVES):
        return Image(Form.ARCHIVE, written)
    if written.startswith(_SCHEMES):
        return Image(Form.APPTAINERS_OWN, written)
    name = written.removeprefix("docker://")
    is_name = "://" not in name and _REGISTRY_NAME.fullmatch(name) is not None
    return Image(Form.REGISTRY, name) if is_name else None


def _form_of_path(path: str) -> Form:
    if path.endswith(".sif"):
        return Form.SIF
    if path.endswith((".sqsh", ".squashfs")):
        return Form.SQUASHFS
    return Form.DIRECTORY
