"""What a project used in each month, summed from receipts as they come, each of them once.

Receipts are read from behind the last one that was counted; sums are exact integers in a file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

# A component of usage with the sums it is made of, and what of them one unit of it is.
UNITS: Final[Mapping[str, tuple[tuple[str, ...], int]]] = {
    "eur": (("amount_neur",), 10**9),
    "cpu_hours": (("cpu_milli_ms",), 1000 * 3_600_000),
    "gpu_hours": (("accelerator_ms",), 3_600_000),
    "gb_hours": (("memory_mb_ms",), 1000 * 3_600_000),
    "tokens": (("tokens_input", "tokens_output"), 1),
    "kwh": (("energy_mj",), 3_600_000_000),
    "kgco2e": (("carbon_location_ng",), 10**12),
}


class Tally:
    """The sums of one project, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text()) if path.exists() else {}
        self.after: str = known.get("after", "")
        self.months: dict[str, Counter[str]] = {
            month: Counter({name: int(amount) for name, amount in sums.items()})
            for month, sums in known.get("months", {}).items()
        }

    def count(self, receipts: Iterable[Mapping[str, Any]]) -> None:
        """Add receipts that come behind those counted, and keep what that makes."""
        for receipt in receipts:
            usage, charge = receipt["usage"], receipt["charge"]
            sums = self.months.setdefault(usage["end"][:7], Counter())
            for meter, amount in usage["quantities"].items():
                sums[meter] += int(amount)
            sums["amount_neur"] += int(charge["amount_neur"])
            sums["energy_mj"] += int(usage["energy_mj"])
            sums["carbon_location_ng"] += int(usage["carbon_location_ng"])
            self.after = receipt["id"]
        self._keep()

    def of(self, month: str, components: Iterable[str]) -> dict[str, float]:
        """Return what was used in a month (`2026-11`), of the components that are usages."""
        sums = self.months.get(month, Counter())
        return {
            name: sum(sums[part] for part in UNITS[name][0]) / UNITS[name][1]
            for name in components
            if name in UNITS
        }

    def _keep(self) -> None:
        months = {
            month: {name: str(amount) for name, amount in sorted(sums.items())}
            for month, sums in sorted(self.months.items())
        }
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"after": self.after, "months": months}))
        temporary.replace(self._path)
