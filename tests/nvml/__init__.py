"""A `libnvidia-ml.so.1` of our own that replays written counters, built by whoever needs it.

It stands in for the driver, not for `pynvml`: the real one loads it. What it was never written to
answer is NOT_SUPPORTED, as a real driver says of many things.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("replay.c")
LIBRARY = "libnvidia-ml.so.1"
SCRIPT_VARIABLE = "REPLAYED_NVML"


def build(folder: Path) -> Path:
    """Compile the library into a folder and return that folder."""
    subprocess.run(
        ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(folder / LIBRARY), SOURCE],
        check=True,
        capture_output=True,
    )
    return folder


def environment(folder: Path, script: Path) -> Mapping[str, str]:
    """Return what a process needs to find the library and what it is to answer."""
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), SCRIPT_VARIABLE: str(script)}
