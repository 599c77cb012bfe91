"""What a workload needs that is no amount, and that not every node's engine can carry.

An engine names what its nodes lack (`NodeCapacity.lacks`); the scheduler reads the same words from a spec
and places nothing where its start would be refused. Decision 0045.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from moulin.domain.image import Form


class Need(StrEnum):
    """One thing that an engine can carry or not; an image is one for each form it may have."""

    LOGIN = "login"
    ENDPOINT = "endpoint"
    SECRETS = "secrets"
    FOLDER = "folder"
    COPIES = "copies"
    OBJECTS = "objects"
    STOP_SIGNAL = "stop-signal"
    NO_IMAGE = "no-image"
    REGISTRY_IMAGE = "registry-image"
    DIRECTORY_IMAGE = "directory-image"
    ARCHIVE_IMAGE = "archive-image"
    SIF_IMAGE = "sif-image"
    SQUASHFS_IMAGE = "squashfs-image"
    APPTAINERS_IMAGE = "apptainers-image"
    UNKNOWN_IMAGE = "unknown-image"
    OUTPUTS_OF_IMAGE = "outputs-of-image"


NEED_BY_FORM: Final[Mapping[Form, Need]] = {
    Form.REGISTRY: Need.REGISTRY_IMAGE,
    Form.DIRECTORY: Need.DIRECTORY_IMAGE,
    Form.ARCHIVE: Need.ARCHIVE_IMAGE,
    Form.SIF: Need.SIF_IMAGE,
    Form.SQUASHFS: Need.SQUASHFS_IMAGE,
    Form.APPTAINERS_OWN: Need.APPTAINERS_IMAGE,
}
# What no engine there is can carry, so that none has to say so.
NOWHERE: Final = (Need.UNKNOWN_IMAGE, Need.OUTPUTS_OF_IMAGE)

TITLES: Final[Mapping[Need, str]] = {
    Need.LOGIN: "an SSH login",
    Need.ENDPOINT: "a model server",
    Need.SECRETS: "secrets",
    Need.FOLDER: "a folder sent along",
    Need.COPIES: "inputs or outputs",
    Need.OBJECTS: "inputs or outputs at s3:// addresses",
    Need.STOP_SIGNAL: "a stop signal other than TERM",
    Need.NO_IMAGE: "a program without an image",
    Need.REGISTRY_IMAGE: "an image",
    Need.DIRECTORY_IMAGE: "an image that is a directory",
    Need.ARCHIVE_IMAGE: "an image archive",
    Need.SIF_IMAGE: "a SIF image",
    Need.SQUASHFS_IMAGE: "a SquashFS image",
    Need.APPTAINERS_IMAGE: "an image at an address that only Apptainer knows",
    Need.UNKNOWN_IMAGE: "an image that no tool knows",
    Need.OUTPUTS_OF_IMAGE: "outputs of a program in an image",
}
_INSTALL: Final = (
    "have Podman (with crun and catatonit) or Apptainer installed on the nodes, of Slurm pyxis or"
    " Apptainer; `moulin doctor` says what a machine has"
)
_ELSEWHERE: Final = "let it run on a pool of engine local or slurm"
HINTS: Final[Mapping[Need, str]] = {
    Need.LOGIN: "have openssh-server installed on the nodes; Ray and Kubernetes pools are not leased",
    Need.ENDPOINT: _ELSEWHERE,
    Need.SECRETS: f"{_ELSEWHERE}: what goes to a Ray cluster is not encrypted on its way",
    Need.FOLDER: f"have what it needs in its `image`, or {_ELSEWHERE}",
    Need.COPIES: f"have what it needs in its `image`, or {_ELSEWHERE}",
    Need.OBJECTS: "`pip install 'moulin[s3]'` for the Python that Moulin's programs run with there",
    Need.STOP_SIGNAL: f"leave `stop_signal` out, or {_ELSEWHERE}",
    Need.NO_IMAGE: "give it an `image`, or the pool a setting `image`",
    **dict.fromkeys(NEED_BY_FORM.values(), _INSTALL),
    Need.UNKNOWN_IMAGE: (
        "name one as a registry does, such as ghcr.io/team/program:2, or give its whole path"
    ),
    Need.OUTPUTS_OF_IMAGE: ("have the program write them where they belong, or leave `image` out"),
}


def image_lacks(taken: Iterable[Form]) -> tuple[Need, ...]:
    """Return what is lacking where only images of these forms can be run.

    >>> image_lacks(frozenset(Form) - {Form.SIF})
    (<Need.SIF_IMAGE: 'sif-image'>,)
    """
    takes = frozenset(taken)
    return tuple(need for form, need in NEED_BY_FORM.items() if form not in takes)


def lacks_in_words(lacks: Iterable[str]) -> tuple[str, ...]:
    """Return what is lacking in plain words, images of every form as one; of unknown words the word.

    >>> lacks_in_words(["login", "secrets", "levitation"])
    ('an SSH login', 'secrets', 'levitation')
    """
    words = tuple(lacks)
    images = tuple(NEED_BY_FORM.values())
    if set(images) <= set(words):
        first = words.index(next(word for word in words if word in images))
        rest = [word for word in words[first:] if word not in images]
        return (*map(_titled, words[:first]), "images", *map(_titled, rest))
    return tuple(map(_titled, words))


def _titled(word: str) -> str:
    return TITLES[Need(word)] if word in frozenset(Need) else word
