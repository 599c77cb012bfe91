"""What a container tool is told of a task; starts and decides nothing.

A task in a container keeps the contract of one without: its own exit status, signals that reach the
program and not only its parents, its log, its variables, its directories at the same paths, its CPUs
and its devices. How each tool is told that is in a module of its own. Decision 0039.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from moulin.domain.image import Form, Image


class Reach(StrEnum):
    """How a shim tells the program something.

    INSIDE: its processes are below the tool's and have another root; they are told, the tool is not.
    MARKED: they are another system's, on the same machine; they are known by the step's variable.
    """

    INSIDE = "inside"
    MARKED = "marked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is to run in a container, and what of this machine is in it at the same paths.

    `names` are variables that the tool itself is started with and passes on by name, so that no value
    is in any argv; one that ends with `*` stands for all that begin so. `obeyed` are the few that
    the tool would take for its own, such as PATH: it is told their values apart.
    """

    step: str
    image: Image
    argv: tuple[str, ...]
    mounts: tuple[str, ...]
    workdir: str
    names: tuple[str, ...] = ()
    obeyed: Mapping[str, str] = field(default_factory=dict)
    has_devices: bool = False
    open_files_max: int = 0
    processes_max: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contained:
    """How a tool is started; `env` is added to the task's own variables."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    reach: Reach = Reach.INSIDE


class ContainerTool(Protocol):
    """A program that runs another in an image's file system."""

    @property
    def title(self) -> str:
        """Its name and, where known, its path."""
        ...

    def takes(self, form: Form) -> bool:
        """Say whether it can run such an image."""
        ...

    def contain(self, contents: Contents) -> Contained:
        """Return how it is started."""
        ...
