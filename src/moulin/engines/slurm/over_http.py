"""What the clients of Slurm over HTTP share: a short-lived token of a file, and bodies that may be none."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from moulin.domain.errors import EngineUnavailable


def read_token(path: str, *, hint: str) -> str:
    """Return the token in a file, which whoever renews it writes; raises `EngineUnavailable`."""
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError as cause:
        raise EngineUnavailable(f"read the token in {path}: {cause.strerror}", hint=hint) from cause


def body_of(answer: httpx.Response) -> Mapping[str, Any]:
    """Return the object that an answer holds, empty where it holds none."""
    try:
        found = answer.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, Mapping) else {}
