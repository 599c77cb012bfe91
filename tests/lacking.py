"""What a machine lacks for a test."""

import os
from typing import NoReturn

import pytest


def lacking(reason: str) -> NoReturn:
    """Let people without something skip its tests; CI fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
