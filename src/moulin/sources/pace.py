"""Measures how fast this machine reads memory and multiplies, in a short process of its own.

    python -m moulin.sources.pace      one JSON object on stdout

Never run inside a serving process: what it allocates is gone with it. A figure of a busy machine is
too low, and whoever shows it says when and how it was taken.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ARRAY_BYTES: Final = 128 * 2**20
ROUNDS: Final = 2
MATRIX: Final = 768
PRODUCTS: Final = 8
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePace:
    """Bytes read and single-precision operations in a second, by all CPUs of the process."""

    read_bytes_per_s: int
    flops_per_s: int
    threads: int


def read_pace(threads: int) -> MachinePace | None:
    """Measure this machine; about half a second. None when it cannot be measured."""
    command = [sys.executable, "-m", "moulin.sources.pace", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S)
        found = json.loads(done.stdout)
        return MachinePace(
            read_bytes_per_s=int(found["read_bytes_per_s"]),
            flops_per_s=int(found["flops_per_s"]),
            threads=threads,
        )
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None


def measure(threads: int) -> dict[str, int]:
    """Return the best of a few rounds: others' load only ever slows one down."""
    import numpy as np

    arrays = [np.ones(ARRAY_BYTES // 8 // threads) for _ in range(threads)]
    read_s = min(_together(arrays) for _ in range(ROUNDS + 1))
    matrix = np.ones((MATRIX, MATRIX), dtype=np.float32)
    product_s = []
    for _ in range(PRODUCTS):
        begin_s = time.perf_counter()
        matrix @ matrix
        product_s.append(time.perf_counter() - begin_s)
    return {
        "read_bytes_per_s": int(sum(array.nbytes for array in arrays) / read_s),
        "flops_per_s": int(2 * MATRIX**3 / min(product_s)),
    }


def _together(arrays: Sequence[object]) -> float:
    import numpy as np

    readers = [threading.Thread(target=np.sum, args=(array,)) for array in arrays]
    begin_s = time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return time.perf_counter() - begin_s


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(max(1, int(sys.argv[1])))))
