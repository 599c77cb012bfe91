"""The replicas that registered themselves, as an operator sees them."""

import time
from typing import TYPE_CHECKING

import typer

from moulin.cli.screen import answer, table
from moulin.cli.session import Data, IsJson, connect
from moulin.domain.words import moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moulin.domain.registration import Registration

app = typer.Typer(rich_markup_mode=None)


@app.command()
def replicas(data: Data = None, is_json: IsJson = False) -> None:
    """List the replicas that registered: where each answers, and whether it is still believed.

    Replicas elsewhere say again and again that they serve. One whose word ran out gets no requests;
    nothing is restarted for it.

    \b
    Examples:
      moulin replicas
      moulin replicas --json
    """
    with connect(data, is_operator=True) as client:
        page = client.factory.registrations()
    answer(page, is_json=is_json, show=lambda: _show(page.items))


def _show(items: "Sequence[Registration]") -> None:
    now_ns = time.time_ns()
    table(
        ("replica", "model", "address", "since", "word"),
        (
            (
                *(each.attempt, each.model, each.address, moment(each.started_at_ns)),
                "believed" if now_ns < each.expires_at_ns else "ran out",
            )
            for each in items
        ),
        empty="no replica registered",
    )
