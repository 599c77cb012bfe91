"""Reads what an operator writes under a pool's `settings`."""

from collections.abc import Sequence
from typing import Final

from moulin.domain.errors import (
    InvalidSpec,
)
from moulin.domain.factory import Pool, PoolMode
from moulin.domain.section import nearest

COUNT_DIGITS_MAX: Final = 18


def check_settings(pool: Pool, names: Sequence[str]) -> None:
    """Raise `InvalidSpec` for a setting that a pool's engine does not have, or a delegated pool."""
    for name in pool.settings:
        if name not in names:
            raise InvalidSpec(
                f"connect pool {pool.name!r}: engine {pool.engine} has no setting {name!r}",
                hint=nearest(name, names),
            )
    if pool.mode is PoolMode.DELEGATED:
        raise InvalidSpec(
            f"connect pool {pool.name!r}: a pool of engine {pool.engine} is owned",
            hint="leave `mode` out",
        )


def whole_number(pool: Pool, name: str, default: int) -> int:
    """Read one of a pool's settings as a whole number.

    Raises `InvalidSpec` for anything else.
    """
    text = pool.settings.get(name, str(default))
    if not text.isascii() or not text.isdigit() or len(text) > COUNT_DIGITS_MAX:
        raise InvalidSpec(
            f"connect pool {pool.name!r}: setting {name} is {text!r}",
            hint="write a whole number, not below zero",
        )
    return int(text)


def yes_or_no(pool: Pool, name: str, *, default: bool) -> bool:
    """Read one of a pool's settings as `yes` or `no`; raises `InvalidSpec` for anything else."""
    text = pool.settings.get(name, "yes" if default else "no").lower()
    if text not in ("yes", "no", "true", "false"):
        raise InvalidSpec(
            f"connect pool {pool.name!r}: setting {name} is {text!r}", hint="write yes or no"
        )
    return text in ("yes", "true")
