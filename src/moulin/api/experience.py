"""What finished requests showed of models: speed and energy, summed over receipts as they come.

Sums are exact; only requests whose usage was measured count, never those charged from a
reservation. Nothing of what was asked or answered is in a receipt.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moulin.domain.factory import EnergyClass
from moulin.domain.units import NS_PER_S, PPM
from moulin.domain.usage import Meter
from moulin.domain.views import ReceiptView
from moulin.energy.requests import INPUT_TOKEN_WEIGHT, OUTPUT_TOKEN_WEIGHT
from moulin.ports.store import Store

PAGE: Final = 1000
_MILLI: Final = 1000
_MILLION: Final = 10**6


@dataclass(slots=True)
class Seen:
    """Requests of one model file in one zone: counts, token sums, time open, energy with overhead."""

    requests: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    open_ns: int = 0
    energy_mj: int = 0
    quality: EnergyClass = EnergyClass.REVENUE_METER
    uncertainty_ppm: int = 0

    @property
    def output_milli(self) -> int:
        """Thousandths of an output token per second of an open request, prompt and queue included."""
        return self.tokens_output * NS_PER_S * _MILLI // self.open_ns if self.open_ns else 0

    def energy_per_million(self, meter: Meter) -> int:
        """Return mJ for a million tokens, split over input and output as receipts split it."""
        weight = OUTPUT_TOKEN_WEIGHT if meter is Meter.TOKENS_OUTPUT else INPUT_TOKEN_WEIGHT
        weighed = INPUT_TOKEN_WEIGHT * self.tokens_input + OUTPUT_TOKEN_WEIGHT * self.tokens_output
        return self.energy_mj * weight * _MILLION // weighed if weighed else 0

    def told(self, zone: str) -> str:
        """Return the sample in words."""
        return (
            f"{self.requests} finished requests in zone {zone}, {self.tokens_input} input and "
            f"{self.tokens_output} output tokens"
        )

    def add(self, receipt: ReceiptView) -> None:
        """Count one more."""
        usage = receipt.usage
        self.requests += 1
        self.tokens_input += usage.quantities.get(Meter.TOKENS_INPUT, 0)
        self.tokens_output += usage.quantities.get(Meter.TOKENS_OUTPUT, 0)
        self.open_ns += max(0, usage.end_ns - usage.start_ns)
        self.energy_mj += usage.energy_mj
        self.quality = max(self.quality, usage.energy_quality)
        self.uncertainty_ppm = min(PPM, max(self.uncertainty_ppm, usage.energy_uncertainty_ppm))


@dataclass(frozen=True, slots=True)
class _Key:
    organisation: str
    digest: str
    zone: str


class Experience:
    """Speed and energy per model file and zone, through a last receipt."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._seen: dict[_Key, Seen] = {}
        self._through = ""

    def read(self, digest: str, organisation: str = "") -> Mapping[str, Seen]:
        """Return by zone what requests of one organisation, or of all, showed of a model file.

        `digest` is as receipts write it, `sha256:…`. Called from a worker thread.

        Cost:   one pass over the receipts issued since the last call; the first call reads all.
        """
        with self._lock:
            self._catch_up()
            found: dict[str, Seen] = {}
            for key, seen in self._seen.items():
                if key.digest == digest and organisation in ("", key.organisation):
                    found[key.zone] = _sum(found.get(key.zone), seen)
            return dict(sorted(found.items()))

    def _catch_up(self) -> None:
        while True:
            page = self._store.receipts(after=self._through, limit=PAGE)
            for receipt in page:
                usage = receipt.usage
                if usage.request and not usage.is_estimated:
                    key = _Key(receipt.organisation, usage.model_digest, usage.zone)
                    self._seen.setdefault(key, Seen()).add(receipt)
            if page:
                self._through = page[-1].id
            if len(page) < PAGE:
                return


def _sum(one: Seen | None, other: Seen) -> Seen:
    if one is None:
        return other
    return Seen(
        requests=one.requests + other.requests,
        tokens_input=one.tokens_input + other.tokens_input,
        tokens_output=one.tokens_output + other.tokens_output,
        open_ns=one.open_ns + other.open_ns,
        energy_mj=one.energy_mj + other.energy_mj,
        quality=max(one.quality, other.quality),
        uncertainty_ppm=max(one.uncertainty_ppm, other.uncertainty_ppm),
    )
