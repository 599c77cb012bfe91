"""Step 6: what each team used and owes, and a receipt that needs nobody's word."""

from typing import Any

from moulin.app.demo.cluster.stage import ClusterStage
from moulin.app.demo.proof import Sum, close_books, row_of, verify_one
from moulin.app.demo.stage import promise
from moulin.domain.units import format_euros
from moulin.domain.views import ReceiptView


def show_bill(stage: ClusterStage) -> dict[str, Any]:
    """Close the books, show each team's sum beside its balance, verify one receipt."""
    screen = stage.screen
    receipts, _ = close_books(stage)
    sums = _by_team(receipts)
    screen.table(
        ("team", "tok in>", "out>", "energy>", "class>", "CO2e>", "€>", "where"),
        [row_of(each) for each in sums],
    )
    screen.quiet(
        "Class and uncertainty are those of power that was stated, not metered. Every millijoule given "
        "to a task is on one of these receipts."
    )
    spent = {each.project: each.spent_neur for each in stage.as_operator.status().balances}
    for each in sums:
        owed = each.of(lambda receipt: receipt.charge.amount_neur)
        promise(spent[each.what] == owed, f"{each.what}: balance and receipts disagree")
        screen.good(f"{each.what}: {format_euros(owed)} €, the same on receipts and balance")
    mine = next(each for each in receipts if each.usage.workload == stage.job)
    return {"receipts": len(receipts), **verify_one(stage, mine.id)}


def _by_team(receipts: list[ReceiptView]) -> list[Sum]:
    teams = sorted({each.project for each in receipts})
    return [
        Sum(what=team, receipts=tuple(each for each in receipts if each.project == team))
        for team in teams
    ]
