"""Commands about money and proof: usage and receipts."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.screen import answer, say, table, write
from moulin.cli.session import Data, IsJson, Project, connect, find_workload
from moulin.domain.errors import InvalidRequest, LocalError, MoulinError, NotFound
from moulin.domain.words import carbon, energy, euros, memory, moment

if TYPE_CHECKING:
    from moulin.domain.control import SpendReport, SpendSum, UsageSum
    from moulin.domain.views import ReceiptView

app = typer.Typer(rich_markup_mode=None)
receipt = typer.Typer(
    help="List, show, save and verify receipts.", no_args_is_help=True, rich_markup_mode=None
)
_WORKLOAD = "workload"
_SPEND_BY = ("key", "model", "user", "label")
KeyFile = Annotated[
    Path,
    typer.Option("--key", metavar="FILE", help="The factory's public key, from `receipt key`."),
]


@app.command()
def usage(
    by: Annotated[
        str, typer.Option("--by", help="Sum by workload, key, model, user or label.")
    ] = "workload",
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Show what each workload, key, model, user or label used, and what it costs.

    Users are told apart where their project, or a key, says what each may use (`per_user`).
    """
    if by not in (_WORKLOAD, *_SPEND_BY):
        known = ", ".join((_WORKLOAD, *_SPEND_BY))
        raise InvalidRequest(f"sum usage by {by!r}", hint=f"known here: {known}")
    if by != _WORKLOAD:
        with connect(data, project) as client:
            spent = client.spend(by, project)
            names = {}
            # Who may not list keys sees their ids; an operator sees those of many projects.
            with contextlib.suppress(MoulinError):
                names = {key.id: key.name for key in client.keys.list().items}
        answer(spent, is_json=is_json, show=lambda: _show_spend(spent, names))
        return
    with connect(data, project) as client:
        report = client.usage(project)
        names = {view.id: view.name for view in client.workloads.every(project=project, limit=500)}

    def show() -> None:
        table(
            (
                *("workload", "project", "receipts>", "used", "energy>", "carbon>", "charge>"),
                *("cpu used>", "most memory>"),
            ),
            (
                (*_sum_row(names.get(each.workload, each.workload), each), *_used(each))
                for each in report.items
            ),
            empty="nothing was used yet; receipts appear when a metering interval closes",
        )
        for each in report.balances:
            budget = "no budget" if each.budget_neur < 0 else f"budget {euros(each.budget_neur)}"
            held = euros(each.reserved_neur + each.granted_neur)
            write(f"{each.project}: spent {euros(each.spent_neur)}, reserved {held}, {budget}")

    answer(report, is_json=is_json, show=show)


def _sum_row(name: str, found: "UsageSum | SpendSum") -> tuple[str, ...]:
    return (
        name,
        found.project,
        str(found.receipts),
        _quantities(found.quantities),
        energy(found.energy_mj),
        carbon(found.carbon_location_ng),
        euros(found.amount_neur),
    )


def _used(found: "UsageSum") -> tuple[str, str]:
    """Return which share of the CPU time held was used, and the most memory of a task."""
    held_ns = found.quantities.get("cpu_milli_ms", 0) * 1_000
    share = f"{100 * found.cpu_used_ns // held_ns} %" if held_ns and not found.cpu_unread else "-"
    return share, memory(found.memory_bytes_max) if found.memory_bytes_max else "-"


def _show_spend(spent: "SpendReport", names: dict[str, str]) -> None:
    table(
        (spent.by, "project", "receipts>", "used", "energy>", "carbon>", "charge>"),
        (_sum_row(names.get(each.name, each.name), each) for each in spent.items),
        empty=f"nothing was used by a {spent.by} yet",
    )


@receipt.command("list")
def receipt_list(
    workload: Annotated[str, typer.Option("--workload", help="Only of this workload.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many.")] = 100,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """List receipts in order of issue, with each figure's class and uncertainty."""
    with connect(data, project) as client:
        wanted = find_workload(client, workload).id if workload else ""
        page = client.receipts.page(workload=wanted, project=project, limit=limit)

    def show() -> None:
        heads = ("receipt", "used", "energy>", "carbon>", "charge>", "zone", "country, as known")
        table(heads, map(_receipt_row, page.items), empty="no receipts yet")
        if page.next:
            say(f"there are more than {limit}; --limit shows up to 1000")

    answer(page, is_json=is_json, show=show)


@receipt.command("show")
def receipt_show(
    id: Annotated[str, typer.Argument(metavar="ID", help="Its id.")],
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Show one receipt with its charge, line by line."""
    with connect(data) as client:
        view = client.receipts.get(id)

    def show() -> None:
        used = view.usage
        source = used.carbon_source or "no source stated"
        facts = (
            ("receipt", view.id),
            ("project", f"{used.project} of {used.organisation}"),
            ("workload", used.workload),
            ("from", moment(used.start_ns)),
            ("to", moment(used.end_ns)),
            ("used", _quantities(used.quantities)),
            ("energy", f"{_energy_with_doubt(view)}: {used.energy_method or 'no method stated'}"),
            ("of it overhead", energy(used.overhead_mj)),
            ("carbon, location", f"{carbon(used.carbon_location_ng)} ({source})"),
            ("carbon, market", carbon(used.carbon_market_ng)),
            ("place", f"zone {used.zone}, site {used.site}"),
            ("country", f"{used.country or '?'}, {used.country_basis}"),
            ("policy", used.policy_decision),
            ("charge", euros(view.charge.amount_neur)),
            ("price book", view.charge.price_book or "none"),
            ("evidence", f"leaf {view.leaf_index} of {view.origin}"),
        )
        for name, value in facts:
            write(f"{name:<17} {value}")
        heads = ("line", "quantity>", "price>", "per>", "amount>")
        table(
            heads,
            (
                (each.sku, str(each.quantity), euros(each.unit_price_neur), str(each.per), euros(each.amount_neur))
                for each in view.charge.lines
            ),
            empty="no charge",
        )  # fmt: skip

    answer(view, is_json=is_json, show=show)


@receipt.command("save")
def receipt_save(
    id: Annotated[str, typer.Argument(metavar="ID", help="Its id.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Save a receipt as the file that `moulin receipt verify` proves, offline and anywhere."""
    with connect(data) as client:
        _write_file(file, client.receipts.file(id))
    facts = {"receipt": id, "file": str(file)}
    answer(facts, is_json=is_json, show=lambda: write(f"saved {id} in {file}"))


@receipt.command("key")
def receipt_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Save the public key that this factory's receipts are verified with."""
    with connect(data) as client:
        _write_file(file, client.receipts.public_key())
    answer({"file": str(file)}, is_json=is_json, show=lambda: write(f"saved the key in {file}"))


@receipt.command("verify")
def receipt_verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A saved receipt.")],
    key: KeyFile,
    is_json: IsJson = False,
) -> None:
    """Verify a saved receipt offline, with the public key alone.

    Prints OK and exits with 0 only when every byte is as the factory signed it.
    """
    from moulin.app.verify import verify_file

    for path in (file, key):
        if not path.is_file():
            raise NotFound(f"verify {file}: there is no {path}", hint="check the path")
    verdict = verify_file(file, key)
    answer(verdict, is_json=is_json, show=lambda: write(verdict.statement))
    raise typer.Exit(0 if verdict.ok else 1)


def _write_file(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as cause:
        raise LocalError(f"write {path}: {cause.strerror}", hint="choose another file") from cause


def _receipt_row(view: "ReceiptView") -> tuple[str, ...]:
    used = view.usage
    return (
        view.id,
        _quantities(used.quantities),
        _energy_with_doubt(view),
        carbon(used.carbon_location_ng),
        euros(view.charge.amount_neur),
        used.zone,
        f"{used.country or '?'}, {used.country_basis}",
    )


def _energy_with_doubt(view: "ReceiptView") -> str:
    used = view.usage
    doubt = f"± {used.energy_uncertainty_ppm / 10_000:g} %"
    return f"{energy(used.energy_mj)} {doubt}, class {used.energy_quality.value}"


def _quantities(quantities: "dict[str, int] | object") -> str:
    """Return quantities in words: tokens as they are, held time in hours."""
    assert isinstance(quantities, dict)
    words = {
        "tokens_input": ("input tokens", 1),
        "tokens_output": ("output tokens", 1),
        "audio_ms": ("audio s", 10**3),
        "characters_input": ("characters", 1),
        "cpu_milli_ms": ("CPU s", 10**6),
        "memory_mb_ms": ("GB s", 10**6),
        "accelerator_ms": ("accelerator s", 10**3),
    }
    shown = []
    for meter, amount in sorted(quantities.items()):
        word, scale = words.get(meter, (meter, 1))
        shown.append(f"{amount / scale:.4g} {word}" if scale > 1 else f"{amount} {word}")
    return ", ".join(shown)
