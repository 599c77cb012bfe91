"""The secrets of projects, folded from the log, and those whose keys are to be destroyed.

Edges read it from other threads: an entry is replaced whole, never changed.
"""

from dataclasses import dataclass, field

from moulin.domain.events import Event, FactoryApplied
from moulin.domain.factory import ObjectKind
from moulin.domain.secret_events import SecretDeleted, SecretSet
from moulin.domain.secrets import SealedSecret


@dataclass(slots=True)
class SealedSecrets:
    """Secrets by (project, name); `dropped` are ids that nothing names any more."""

    by_name: dict[tuple[str, str], SealedSecret] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def of_project(self, project: str) -> tuple[SealedSecret, ...]:
        """Return a project's secrets by name."""
        found = list(self.by_name.values())
        ours = (each for each in found if each.project == project)
        return tuple(sorted(ours, key=lambda each: each.name))


def fold_sealed(book: SealedSecrets, event: Event) -> None:
    """Apply one event in place; a project that goes takes its secrets along."""
    match event.payload:
        case SecretSet(secret=secret):
            _drop(book, secret.project, secret.name)
            book.by_name[secret.project, secret.name] = secret
        case SecretDeleted(project=project, name=name):
            _drop(book, project, name)
        case FactoryApplied(changes=changes):
            for change in changes:
                if change.kind is ObjectKind.PROJECT and change.value is None:
                    for each in book.of_project(change.name):
                        _drop(book, each.project, each.name)
        case _:
            pass


def _drop(book: SealedSecrets, project: str, name: str) -> None:
    gone = book.by_name.pop((project, name), None)
    if gone is not None:
        book.dropped.append(gone.id)
