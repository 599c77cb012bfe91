"""Sums of usage over all receipts, kept up to date by reading only the new ones.

Sums are exact Python integers. Nothing here prices or corrects anything: receipts are final.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from moulin.domain.control import SpendSum, UsageSum
from moulin.domain.usage import NOT_READ, Meter, Usage
from moulin.domain.views import ReceiptView
from moulin.identity import Keyring
from moulin.ports.store import Store

PAGE: Final = 1000
SPEND_BY: Final = ("key", "model", "user", "label")
USERS_SUMMED_MAX: Final = 200_000
OTHER_USERS: Final = "usr_others"
"""All users beyond so many: clients choose the names."""


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
    cpu_used_ns: int = 0
    cpu_unread: int = 0
    memory_bytes_max: int = 0


class UsageSums:
    """Usage per (project, workload), key, model, user and label through a last receipt."""

    def __init__(self, store: Store, keyring: Callable[[], Keyring] = Keyring) -> None:
        self._store = store
        self._keyring = keyring
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, str], _Sum] = {}
        self._spent: dict[str, dict[tuple[str, str], _Sum]] = {by: {} for by in SPEND_BY}
        self._labels: dict[str, Mapping[str, str]] = {}
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

    def spent(self, by: str, project: str = "") -> tuple[SpendSum, ...]:
        """Return the sums by key, model, user or label of one project or all, by project and name.

        Called from a worker thread; `by` is one of `SPEND_BY`.
        """
        with self._lock:
            self._catch_up()
            return tuple(
                _spend(owner, name, found)
                for (owner, name), found in sorted(self._spent[by].items())
                if project in ("", owner)
            )

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
        usage, project = receipt.usage, receipt.project
        _count(self._sums, (project, usage.workload), receipt)
        spent = self._spent
        if usage.key:
            _count(spent["key"], (project, usage.key), receipt)
        if usage.subject:
            _count(spent["model"], (project, usage.subject), receipt)
        if usage.user:
            user = (project, usage.user)
            if user not in spent["user"] and len(spent["user"]) >= USERS_SUMMED_MAX:
                user = (project, OTHER_USERS)
            _count(spent["user"], user, receipt)
        for label in self._labels_of(usage):
            _count(spent["label"], (project, label), receipt)

    def _labels_of(self, usage: Usage) -> list[str]:
        """Return `key=value` of every label of the workload, or of the key a request came with."""
        if usage.request:
            key = self._keyring().by_id.get(usage.key)
            labels = key.labels if key is not None else {}
        elif usage.workload in self._labels:
            labels = self._labels[usage.workload]
        else:
            found = self._store.workload(usage.workload)
            labels = self._labels[usage.workload] = found.spec.labels if found else {}
        return [f"{name}={value}" for name, value in sorted(labels.items())]


def _count(sums: dict[tuple[str, str], _Sum], key: tuple[str, str], receipt: ReceiptView) -> None:
    usage = receipt.usage
    found = sums.setdefault(key, _Sum(organisation=receipt.organisation))
    found.receipts += 1
    found.estimated += usage.is_estimated
    found.quantities.update(usage.quantities)
    found.energy_mj += usage.energy_mj
    found.carbon_location_ng += usage.carbon_location_ng
    found.carbon_market_ng += usage.carbon_market_ng
    found.amount_neur += receipt.charge.amount_neur
    if usage.cpu_used_ns != NOT_READ:
        found.cpu_used_ns += usage.cpu_used_ns
    else:
        found.cpu_unread += Meter.CPU_MILLI_MS.value in usage.quantities
    found.memory_bytes_max = max(found.memory_bytes_max, usage.memory_bytes_max)


def _spend(project: str, name: str, found: _Sum) -> SpendSum:
    return SpendSum(
        project=project,
        name=name,
        receipts=found.receipts,
        quantities=dict(sorted(found.quantities.items())),
        energy_mj=found.energy_mj,
        carbon_location_ng=found.carbon_location_ng,
        amount_neur=found.amount_neur,
    )


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
        cpu_used_ns=found.cpu_used_ns,
        cpu_unread=found.cpu_unread,
        memory_bytes_max=found.memory_bytes_max,
    )
