"""What a spec needs that is no amount, and as a mask that columns of nodes are tested with at once."""

from collections.abc import Iterable, Iterator
from typing import Final

from moulin.domain.image import read_image
from moulin.domain.needs import NEED_BY_FORM, Need
from moulin.domain.workload import STOP_SIGNALS, TaskTemplate, WorkloadSpec

_OBJECTS: Final = "s3://"
_BIT: Final = {need: 1 << index for index, need in enumerate(Need)}


def needs_of(spec: WorkloadSpec) -> tuple[Need, ...]:
    """Return what a workload needs of its nodes beside amounts, in the order of `Need`.

    >>> from moulin.domain.workload import WorkloadKind
    >>> task = TaskTemplate(command=("true",), image="alpine", secrets={"TOKEN": "token"})
    >>> needs_of(WorkloadSpec(kind=WorkloadKind.JOB, name="mill", task=task))
    (<Need.SECRETS: 'secrets'>, <Need.REGISTRY_IMAGE: 'registry-image'>)
    """
    found = set(_of_task(spec.task)) if spec.task is not None else set()
    if spec.lease is not None:
        found.add(Need.LOGIN)
    if spec.endpoint is not None:
        found.add(Need.ENDPOINT)
    if spec.stop_signal != STOP_SIGNALS[0]:
        found.add(Need.STOP_SIGNAL)
    return tuple(need for need in Need if need in found)


def need_mask(needs: Iterable[Need]) -> int:
    """Return needs as bits of one number, which columns of nodes are tested with at once."""
    mask = 0
    for need in needs:
        mask |= _BIT[need]
    return mask


def needs_in(mask: int) -> tuple[Need, ...]:
    """Return the needs of a mask, in the order of `Need`."""
    return tuple(need for need, bit in _BIT.items() if mask & bit)


def _of_task(task: TaskTemplate) -> Iterator[Need]:
    if task.secrets or task.secret_files:
        yield Need.SECRETS
    if task.bundle:
        yield Need.FOLDER
    addresses = (*task.inputs.values(), *task.outputs.values())
    if addresses:
        yield Need.COPIES
    if any(address.startswith(_OBJECTS) for address in addresses):
        yield Need.OBJECTS
    if task.image and task.outputs:
        yield Need.OUTPUTS_OF_IMAGE
    image = read_image(task.image) if task.image else None
    if image is not None:
        yield NEED_BY_FORM[image.form]
    else:
        yield Need.UNKNOWN_IMAGE if task.image else Need.NO_IMAGE
