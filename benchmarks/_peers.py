"""Other gateways from the package index, each in an environment of its own that is made once.

A peer that cannot be installed or does not start is absent with the reason; no figure is made up.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

REQUIREMENTS: Final[Mapping[str, str]] = {
    "vllm_router": "vllm-router==0.1.17",
    "litellm": "litellm[proxy]==1.106.2",
}
INSTALL_S: Final = 600.0


class Absent(Exception):
    """A peer is not there; the text says why."""


def program(name: str, command: str) -> Path:
    """Return a peer's program, after installing it at the first use.

    Raises `Absent` with the reason.
    """
    requirement = REQUIREMENTS[name]
    folder = _cache() / requirement.replace("[", "-").replace("]", "")
    found = folder / "bin" / command
    if not found.exists():
        _install(folder, requirement)
    if not found.exists():
        raise Absent(f"{requirement} has no program {command}")
    return found


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "moulin-benchmarks"


def _install(folder: Path, requirement: str) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if uv is None:
        raise Absent("uv is not installed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    steps = (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), requirement],
    )
    for step in steps:
        try:
            done = subprocess.run(
                step, capture_output=True, text=True, check=False, timeout=INSTALL_S
            )
        except subprocess.TimeoutExpired:
            raise Absent(f"installing {requirement} took longer than {INSTALL_S:g} s") from None
        if done.returncode != 0:
            said = " ".join(done.stderr.split())[-300:]
            raise Absent(f"{requirement} cannot be installed: {said}")
