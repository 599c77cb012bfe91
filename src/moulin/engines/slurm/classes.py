"""What a partition's accelerators are called here, and how Slurm is told which of them are meant.

An operator gives a pool one class. Where its partition has several types of GPUs, those whose type has
the words of that class are offered as it, the others by their own type. It asks and places nothing.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from moulin.engines.slurm.formats import SlurmNode

_WORDS: Final = re.compile(r"[^a-z0-9]+")


def classes_by_type(nodes: Sequence[SlurmNode], pool_class: str) -> Mapping[str, str]:
    """Return the class of each type of GPU in a partition; without a `pool_class` that is the type.

    One type is what the operator calls it. Of several, those are that agree with it: to the word, else
    with all words of the one in the other. Where none does, the class is a name for all of them.

    >>> mixed = [SlurmNode(name="n", accelerators=1, accelerator_type=t) for t in ("a100", "h100")]
    >>> classes_by_type(mixed, "H100"), classes_by_type(mixed, "gpu-node")
    ({'a100': 'a100', 'h100': 'H100'}, {'a100': 'gpu-node', 'h100': 'gpu-node'})
    """
    types = sorted({node.accelerator_type for node in nodes if node.accelerators})
    if not pool_class:
        return {each: each for each in types}
    wanted = _words(pool_class)
    named = [each for each in types if _words(each)]
    agreeing = [each for each in named if _words(each) == wanted]
    if not agreeing:
        agreeing = [each for each in named if _words(each) <= wanted or wanted <= _words(each)]
    is_one = len(types) < 2 or not agreeing
    return {each: pool_class if is_one or each in (*agreeing, "") else each for each in types}


def type_meant(
    nodes: Sequence[SlurmNode], placed: Sequence[str], pool_class: str, asked: str
) -> str:
    """Return Slurm's name for the GPUs of a class that is asked for, empty when any will do.

    With nodes that are `placed` on it is theirs, empty where they have several: Slurm is told of those
    nodes, too. Else it is the type of that class that most nodes have.
    """
    if placed:
        found = {node.accelerator_type for node in nodes if node.name in frozenset(placed)}
        return found.pop() if len(found) == 1 else ""
    classes = classes_by_type(nodes, pool_class)
    if len(classes) > 1 and all(each == asked for each in classes.values()):
        return ""
    kinds = Counter(
        node.accelerator_type
        for node in nodes
        if node.accelerators and classes[node.accelerator_type] == asked
    )
    return kinds.most_common(1)[0][0] if kinds else ""


def _words(written: str) -> frozenset[str]:
    return frozenset(_WORDS.split(written.lower())) - {""}
