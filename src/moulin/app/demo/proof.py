"""Step 6: what it took and cost, where each millijoule went, and proof without trusting anybody."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moulin.app.demo.refusals import POOR_PROJECT
from moulin.app.demo.stage import Stage, end_everything, promise, wait_until
from moulin.app.verify import verify_file
from moulin.domain.errors import Conflict
from moulin.domain.usage import Meter
from moulin.domain.views import NodeIntervalView, ReceiptView
from moulin.domain.words import carbon, energy, euros
from moulin.domain.workload import FINAL_WORKLOAD_STATES

CLOSE_S: Final = 60.0
PAGE: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Receipts of one thing added up; class and uncertainty are the worst of them."""

    what: str
    receipts: tuple[ReceiptView, ...]

    def of(self, amount: Callable[[ReceiptView], int]) -> int:
        """Return the exact sum of one amount."""
        return sum(amount(each) for each in self.receipts)

    def tokens(self, meter: Meter) -> str:
        """Return a number of tokens, nothing where none were used."""
        total = self.of(lambda each: each.usage.quantities.get(meter.value, 0))
        return str(total) if total else ""


def settle_up(stage: Stage) -> dict[str, Any]:
    """Stop the model, show receipts and energy, verify one receipt and a falsified copy.

    Raises `NotAsPromised` when sums do not add up or a verdict is wrong.
    """
    receipts, intervals = close_books(stage)
    _check_origins(stage, receipts)
    facts = _show_receipts(stage, receipts)
    facts |= _show_energy(stage, intervals, receipts)
    first = stage.briefs[0]["provenance"]["receipt"]
    return facts | verify_one(stage, first)


def leave(stage: Stage) -> dict[str, Any]:
    """Stop everything the demo started and look for what is left; raises `NotAsPromised` if any is."""
    left = end_everything(stage)
    promise(not left, f"still running: {', '.join(str(mark.pid) for mark in left)}")
    stage.screen.good(
        "everything is stopped: no process on this machine names the demo's directory any more"
    )
    return {"processes_left": len(left)}


def close_books(stage: Stage) -> tuple[list[ReceiptView], tuple[NodeIntervalView, ...]]:
    """Stop the endpoint and wait until every millijoule given to a task is on a receipt."""
    stage.as_tenant.workloads.stop(stage.endpoint)
    read: list[Any] = [[], ()]

    def is_closed() -> bool:
        if stage.as_tenant.workloads.get(stage.endpoint).state not in FINAL_WORKLOAD_STATES:
            return False
        read[:] = [_receipts(stage), stage.as_operator.factory.intervals().items]
        return _allocated_mj(read[1]) == _task_mj(read[0]) > 0

    with stage.screen.progress("the model stops and the last metering interval closes"):
        wait_until(is_closed, CLOSE_S, "receipts add up to what was allocated")
    return read[0], read[1]


def _receipts(stage: Stage) -> list[ReceiptView]:
    found: list[ReceiptView] = []
    cursor = ""
    while True:
        page = stage.as_operator.receipts.page(cursor=cursor, limit=PAGE)
        found += page.items
        cursor = page.next
        if not cursor:
            return found


def _check_origins(stage: Stage, receipts: Iterable[ReceiptView]) -> None:
    """Compare what each brief says of its origin with the receipt it names."""
    by_id = {each.id: each for each in receipts}
    for line in stage.briefs:
        said = line["provenance"]
        receipt = by_id.get(said["receipt"])
        promise(
            receipt is not None, f"there is no receipt {said['receipt']} for {line['document']}"
        )
        assert receipt is not None
        used = receipt.usage
        meters = used.quantities
        promise(
            (used.zone, used.model_digest) == (said["zone"], stage.model_digest)
            and meters.get(Meter.TOKENS_INPUT.value) == said["tokens_input"]
            and meters.get(Meter.TOKENS_OUTPUT.value) == said["tokens_output"],
            f"the brief of {line['document']} and its receipt disagree",
        )


def _show_receipts(stage: Stage, receipts: list[ReceiptView]) -> dict[str, Any]:
    screen = stage.screen
    sums = list(_by_subject(stage, receipts))
    total = Sum(what=f"all {len(receipts)} receipts", receipts=tuple(receipts))
    screen.table(
        ("what", "tok in>", "out>", "energy>", "class>", "CO2e>", "€>", "where"),
        [row_of(each) for each in (*sums, total)],
    )
    used = receipts[0].usage
    screen.quiet(
        f"Country {used.country}: {used.country_basis}. Carbon: {used.carbon_source}. Energy includes "
        "the site's overhead (PUE); class D or E means modelled from CPU time, not metered, and off "
        "by up to what stands beside it."
    )
    screen.good("each brief names its receipt, and the two agree: tokens, zone, model digest")
    return {
        "receipts": len(receipts),
        "energy_mj": str(total.of(lambda r: r.usage.energy_mj)),
        "carbon_location_ng": str(total.of(lambda r: r.usage.carbon_location_ng)),
        "amount_neur": str(total.of(lambda r: r.charge.amount_neur)),
        "tokens_input": total.tokens(Meter.TOKENS_INPUT),
        "tokens_output": total.tokens(Meter.TOKENS_OUTPUT),
    }


def _by_subject(stage: Stage, receipts: list[ReceiptView]) -> Iterable[Sum]:
    document_by_receipt = {b["provenance"]["receipt"]: b["document"] for b in stage.briefs}
    groups: dict[str, list[ReceiptView]] = {}
    for each in receipts:
        if each.id in document_by_receipt:
            what = f"brief {document_by_receipt[each.id]}"
        elif each.usage.request:
            what = f"{POOR_PROJECT}, asking" if each.project == POOR_PROJECT else "other calls"
        else:
            what = "job itself" if each.usage.workload == stage.job else "model, waiting"
        groups.setdefault(what, []).append(each)
    for what in sorted(groups, key=lambda what: (not what.startswith("brief"), what)):
        yield Sum(what=what, receipts=tuple(groups[what]))


def row_of(each: Sum) -> tuple[str, ...]:
    """Return the cells of one sum: what, tokens in and out, energy, class, carbon, euros, where."""
    used = [receipt.usage for receipt in each.receipts]
    doubt = max(usage.energy_uncertainty_ppm for usage in used) / 10_000
    quality = max(usage.energy_quality.value for usage in used)
    total_mj = each.of(lambda r: r.usage.energy_mj)
    return (
        each.what,
        each.tokens(Meter.TOKENS_INPUT),
        each.tokens(Meter.TOKENS_OUTPUT),
        energy(total_mj),
        f"{quality} ±{doubt:g}%",
        carbon(each.of(lambda r: r.usage.carbon_location_ng)).removesuffix(" CO2e"),
        euros(each.of(lambda r: r.charge.amount_neur)).removesuffix(" €"),
        ", ".join(sorted({f"{usage.zone} {usage.country}" for usage in used})),
    )


def _show_energy(
    stage: Stage, intervals: tuple[NodeIntervalView, ...], receipts: list[ReceiptView]
) -> dict[str, Any]:
    screen = stage.screen
    last = intervals[-1]
    reading_mj = sum(each.energy_mj for each in intervals)
    allocated_mj = _allocated_mj(intervals)
    idle_mj = sum(each.idle_mj for each in intervals)
    unattributed_mj = sum(each.unattributed_mj for each in intervals)
    screen.gap()
    screen.say(
        f"Where the node's energy went, over {len(intervals)} intervals. The reading is no meter's: "
        f"{last.method}; class {last.quality}, ± {last.uncertainty_ppm / 10_000:g} %."
    )
    screen.table(
        ("", ">", ""),
        [
            (
                "allocated to tasks",
                f"{allocated_mj:,} mJ",
                "all of it on the receipts above (before overhead)",
            ),
            ("idle", f"{idle_mj:,} mJ", "held by nobody; the operator's own"),
            (
                "unattributed",
                f"{unattributed_mj:,} mJ",
                "the system, other programs, Moulin itself",
            ),
            ("the node's reading", f"{reading_mj:,} mJ", ""),
        ],
    )
    promise(
        allocated_mj + idle_mj + unattributed_mj == reading_mj,
        "allocated, idle and unattributed do not add up to the reading",
    )
    screen.good(
        f"{allocated_mj:,} + {idle_mj:,} + {unattributed_mj:,} = {reading_mj:,}: to the millijoule"
    )
    return {
        "reading_mj": str(reading_mj),
        "allocated_mj": str(allocated_mj),
        "idle_mj": str(idle_mj),
        "unattributed_mj": str(unattributed_mj),
        "receipts_mj": str(_task_mj(receipts)),
    }


def _allocated_mj(intervals: Iterable[NodeIntervalView]) -> int:
    return sum(each.allocated_mj for each in intervals)


def _task_mj(receipts: Iterable[ReceiptView]) -> int:
    """Return the receipts' energy without overhead: what tasks used on the node."""
    return sum(each.usage.energy_mj - each.usage.overhead_mj for each in receipts)


def verify_one(stage: Stage, receipt: str) -> dict[str, Any]:
    """Verify one receipt and a copy with one byte flipped; raises `NotAsPromised` for a wrong verdict."""
    screen = stage.screen
    file = stage.workplace / "receipt.json"
    key = stage.workplace / "factory.pub"
    saved: list[bytes] = []
    wait_until(
        lambda: _save(stage, receipt, saved), CLOSE_S, "a signed checkpoint covers the receipt"
    )
    file.write_bytes(saved[0])
    key.write_bytes(stage.as_operator.receipts.public_key())
    screen.gap()
    screen.say(f"Receipt {receipt}, with nothing but the factory's public key:")
    screen.say(f"moulin receipt verify {file} --key {key}", style="bold")
    verdict = verify_file(file, key)
    promise(verdict.ok, f"the receipt does not verify: {verdict.statement}")
    screen.good(verdict.statement)
    forged, where = _flip_a_digit(saved[0])
    forged_file = stage.workplace / "receipt-forged.json"
    forged_file.write_bytes(forged)
    screen.say(f"The same file with one byte changed, in its energy ({where}):")
    forged_verdict = verify_file(forged_file, key)
    promise(not forged_verdict.ok, "a forged receipt verifies")
    screen.bad(forged_verdict.statement)
    return {"verdict": verdict.statement, "forged_verdict": forged_verdict.statement}


def _save(stage: Stage, receipt: str, saved: list[bytes]) -> bool:
    try:
        saved.append(stage.as_operator.receipts.file(receipt))
    except Conflict:
        return False  # no checkpoint covers it yet
    return True


def _flip_a_digit(data: bytes) -> tuple[bytes, str]:
    """Return the file with the first digit of its energy changed, and what was changed."""
    found = re.search(rb'"total_mj": "([0-9])', data)
    assert found is not None
    place = found.start(1)
    old = data[place : place + 1]
    new = b"1" if old != b"1" else b"2"
    words = f"byte {place}: {old.decode()} became {new.decode()}"
    return data[:place] + new + data[place + 1 :], words


def results_of(data: Path) -> Path:
    """Return where briefs, receipt and public key are, for whoever keeps the directory."""
    return data / "demo"
