"""A `libnvidia-ml.so.1` of our own that replays written counters, built by whoever needs it.

It stands in for the driver, not for `pynvml`: the real one loads it. What it was never written to
answer is NOT_SUPPORTED, as a real driver says of many things.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
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


class Driver:
    """What the driver of one machine says, until told otherwise; devices are called by `name`."""

    def __init__(self, script: Path, devices: int, name: str = "GPU") -> None:
        """Write that every device is there and well."""
        self.script = script
        self.devices = devices
        self.name = name
        self._told: list[str] = []  # an XID is told once, in the order of all of them
        self._ecc = [0] * devices
        self.heal()

    def heal(self) -> None:
        """Let every device be there and well; what was counted stays counted."""
        self._say(range(self.devices))

    def restart(self) -> None:
        """Heal, and forget the XIDs: a driver tells them only to who listens, and nobody does now."""
        self._told.clear()
        self.heal()

    def xid(self, device: int) -> None:
        """Tell of a fatal XID: the device has fallen off the bus."""
        self._told.append(f"xid {device} 79")
        self._say(range(self.devices))

    def ecc(self, device: int) -> None:
        """Count an uncorrected error."""
        self._ecc[device] += 1
        self._say(range(self.devices))

    def lose(self, device: int) -> None:
        """Lose a device."""
        self._say([each for each in range(self.devices) if each != device])

    def fail_remap(self, device: int) -> None:
        """Say that a row could not be remapped."""
        self._say(range(self.devices), [f"remap {device} 0 1"])

    def _say(self, here: Sequence[int], more: Sequence[str] = ()) -> None:
        lines = [f"device {each} {self.name}-{each}" for each in here]
        lines += [f"ecc {each} {self._ecc[each]}" for each in here]
        lines += [f"remap {each} 0 0" for each in here]
        new = self.script.with_suffix(".new")
        new.write_text("\n".join([*lines, *more, *self._told]) + "\n", "ascii")
        new.replace(self.script)
