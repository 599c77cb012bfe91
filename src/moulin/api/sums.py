"""Sums of usage over all receipts, kept up to date by reading only the new ones.

Sums are exact Python integers. Nothing here prices or corrects anything: receipts are final.
"""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.control import UsageSum
from moulin.domain.views import ReceiptView
from moulin.ports.store import Store

PAGE: Final = 1000


@dataclass(slots=True)
class _Sum:
    organisation: str
    receipts: int = 0
    estimated: int = 0
    quantities: Counter[str] = field(default_factory=Counter)
    energy_mj: int = 0
    carbon_location_ng: int = 0
    carbon_market_ng: int = 0
    amount_neur: int = 0


class UsageSums:
    """Usage per (project, workload) through a last receipt."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, str], _Sum] = {}
        self._through = ""

    def read(self, project: str = "") -> tuple[tuple[UsageSum, ...], str]:
        """Return the sums of one project or all, by project and workload, and the last receipt.

        Called from a worker thread.

        Cost:   one pass over the receipts issued since the last call; the first call reads all.
        """
        with self._lock:
            self._catch_up()
            items = tuple(
                _frozen(owner, workload, found)
                for (owner, workload), found in sorted(self._sums.items())
                if project in ("", owner)
            )
            return items, self._through

    def _catch_up(self) -> None:
        while True:
            page = self._store.receipts(after=self._through, limit=PAGE)
            for receipt in page:
                self._add(receipt)
            if page:
                self._through = page[-1].id
            if len(page) < PAGE:
                return

    def _add(self, receipt: ReceiptView) -> None:
        usage = receipt.usage
        found = self._sums.setdefault(
            (receipt.project, usage.workload), _Sum(organisation=receipt.organisation)
        )
        found.receipts += 1
        found.estimated += usage.is_estimated
        found.quantities.update(usage.quantities)
        found.energy_mj += usage.energy_mj
        found.carbon_location_ng += usage.carbon_location_ng
        found.carbon_market_ng += usage.carbon_market_ng
        found.amount_neur += receipt.charge.amount_neur


def _frozen(project: str, workload: str, found: _Sum) -> UsageSum:
    return UsageSum(
        organisation=found.organisation,
        project=project,
        workload=workload,
        receipts=found.receipts,
        estimated=found.estimated,
        quantities=dict(sorted(found.quantities.items())),
        energy_mj=found.energy_mj,
        carbon_location_ng=found.carbon_location_ng,
        carbon_market_ng=found.carbon_market_ng,
        amount_neur=found.amount_neur,
    )
