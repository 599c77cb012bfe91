"""What a runtime says of itself: the program that serves models of one ability.

A runtime is one module under `moulin.runtimes` with a value `RUNTIME` of this kind; nothing else
has to know it. Its contract is in `docs/guides/add-a-runtime.md`, its proof the conformance suite.
"""

from dataclasses import dataclass

from moulin.domain.model import Ability


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One runtime.

    `name` is its module under `moulin.runtimes`; `abilities` are what it serves; `modules` have to
    be importable for it. With a `lock` (a file beside the module, exact versions with hashes) it
    has an environment of its own of about `size_bytes`; without, it shares Moulin's, where `extra`
    brings what it needs.
    """

    name: str
    title: str
    abilities: tuple[Ability, ...]
    modules: tuple[str, ...]
    extra: str = ""
    lock: str = ""
    size_bytes: int = 0
