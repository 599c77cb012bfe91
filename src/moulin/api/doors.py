"""How many people are inside of tasks at once, in all and of one project."""

from collections import Counter

from moulin.domain.errors import QuotaExceeded


class Doors:
    """Counts sessions; used on the event loop alone."""

    def __init__(self, whole_max: int, project_max: int) -> None:
        self._whole_max = whole_max
        self._project_max = project_max
        self._inside: Counter[str] = Counter()

    def enter(self, project: str) -> None:
        """Count one more; raises `QuotaExceeded` where that is one too many."""
        is_full = self._inside.total() >= self._whole_max
        if is_full or self._inside[project] >= self._project_max:
            limit = self._whole_max if is_full else self._project_max
            whose = "the factory" if is_full else f"project {project}"
            raise QuotaExceeded(
                f"enter a task: {limit} sessions of {whose} are open",
                hint="end one of them, or try again later",
                details={"limit": limit},
            )
        self._inside[project] += 1

    def leave(self, project: str) -> None:
        """Count one less."""
        self._inside[project] -= 1
        if not self._inside[project]:
            del self._inside[project]
