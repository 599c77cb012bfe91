"""`python -m benchmarks NAME [--json] [...]`: run one benchmark and keep its result.

A benchmark is a module beside this one with `run(arguments) -> dict`, and `add_arguments(parser)`
where it has options. Its module docstring is the question it answers. The last line printed is one
JSON object; the same goes to `benchmarks/results/NAME.json` with date, machine and command, or to
what `result_name(options)` says where one benchmark gives several results.
"""

import argparse
import importlib
import json
import os
import pkgutil
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def names() -> list[str]:
    """Return the benchmarks there are."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules([str(HERE)])
        if not module.name.startswith("_") and not module.ispkg
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmark."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results alone")
    module = None
    if given and given[0] in names():
        module = importlib.import_module(f"benchmarks.{given[0]}")
        if hasattr(module, "add_arguments"):
            module.add_arguments(parser)
    options = parser.parse_args(given)
    assert module is not None
    load_before = os.getloadavg()[0]
    result: dict[str, Any] = module.run(options)
    if not options.no_save:
        record = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "load_before": round(load_before, 2),
            # A home directory is nobody's business.
            "command": f"python -m benchmarks {' '.join(given)}".replace(str(Path.home()), "~"),
            "result": result,
        }
        name_of = getattr(module, "result_name", lambda given: given.name)
        path = HERE / "results" / f"{name_of(options)}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")
    if not options.json:
        print(json.dumps(result, indent=2))
    print(json.dumps(result))
    return 0


def machine() -> dict[str, Any]:
    """Say what the figures were taken on."""
    model = platform.processor()
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "memory_gb": round(memory_bytes / 1e9),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


sys.exit(main())
