"""Hands ends of workloads to whoever tells webhooks; it never waits and never asks whether they heard."""

from dataclasses import replace

from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.domain.notices import WorkloadNotice


def tell_ends(plane: Plane, draft: Draft) -> None:
    """Hand the ends that are durable now to whoever tells webhooks; it does not wait."""
    untold = plane.books.notices.untold
    for event in draft.events:
        if event.sequence in untold:
            _tell(plane, untold[event.sequence])


def tell_ends_again(plane: Plane) -> None:
    """Hand over again the ends that no webhook has answered for."""
    for _, notice in sorted(plane.books.notices.untold.items()):
        _tell(plane, notice)


def _tell(plane: Plane, notice: WorkloadNotice) -> None:
    plane.ports.notify(replace(notice, url=plane.books.webhook(notice.project)))
