"""Commands about machines: which there are, how well they are, and what an operator says of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moulin.cli.screen import answer, sentences, table, write
from moulin.cli.session import Data, IsJson, connect
from moulin.domain.needs import lacks_in_words
from moulin.domain.words import cpus, memory, moment

if TYPE_CHECKING:
    from moulin.domain.views import NodeView

app = typer.Typer(rich_markup_mode=None)
NAMED_MAX: Final = 5
Node = Annotated[str, typer.Argument(metavar="NODE", help="Its name.")]
Words = Annotated[str, typer.Option("--because", help="Why; shown with the node.")]


@app.callback(invoke_without_command=True)
def nodes(context: typer.Context, data: Data = None, is_json: IsJson = False) -> None:
    """List the nodes: what is held on them, how well they are, and what they cannot carry."""
    if context.invoked_subcommand is not None:
        return
    with connect(data) as client:
        page = client.factory.nodes()
    answer(page, is_json=is_json, show=lambda: _show_list(page.items))


@app.command()
def check(node: Node, data: Data = None, is_json: IsJson = False) -> None:
    """Look at a node now; one in quarantine needs a check that finds nothing to come back."""
    with connect(data, is_operator=True) as client:
        found = client.factory.check(node)
    answer(found, is_json=is_json, show=lambda: _show(found))
    if found.symptoms:
        raise typer.Exit(1)


@app.command()
def quarantine(node: Node, words: Words = "", data: Data = None, is_json: IsJson = False) -> None:
    """Place nothing more on a node until it is released; what runs there goes on."""
    with connect(data, is_operator=True) as client:
        found = client.factory.quarantine(node, words)
    answer(found, is_json=is_json, show=lambda: _show(found))


@app.command()
def release(node: Node, words: Words = "", data: Data = None, is_json: IsJson = False) -> None:
    """Say that a node is well, whatever was known against it."""
    with connect(data, is_operator=True) as client:
        found = client.factory.release(node, words)
    answer(found, is_json=is_json, show=lambda: _show(found))


def _show_list(items: "tuple[NodeView, ...]") -> None:
    table(
        (
            *("node", "zone", "class", "cpus held>", "memory held>", "accelerators>"),
            *("others'>", "state", "health"),
        ),
        (
            (
                *(node.node, node.zone, node.machine_class),
                f"{cpus(node.cpu_milli_held)} of {cpus(node.cpu_milli)}",
                f"{memory(node.memory_bytes_held)} of {memory(node.memory_bytes)}",
                f"{node.accelerators_held} of {node.accelerators}" if node.accelerators else "-",
                taken(node),
                reach(node),
                node.health.value,
            )
            for node in items
        ),
        empty="no nodes",
    )
    write_troubles(items)
    _write_lacks(items)


def reach(node: "NodeView") -> str:
    """Return in one word whether anything new is put on a node, as far as its engine is concerned."""
    if not node.is_reachable:
        return "unreachable"
    if node.closed_because:
        return "closed"
    return "watched" if node.is_watched_only else "reachable"


def taken(node: "NodeView") -> str:
    """Return what work holds on a node that is not Moulin's."""
    parts = [f"{cpus(node.taken_cpu_milli)} cpus"] if node.taken_cpu_milli else []
    if node.taken_accelerators:
        parts.append(f"{node.taken_accelerators} accelerators")
    return ", ".join(parts) or "-"


def write_troubles(items: "Sequence[NodeView]") -> None:
    """Write a line for each node that is closed or not healthy, with why."""
    for node in items:
        if node.closed_because:
            write(f"{node.node} is closed by its engine: {node.closed_because}")
        for line in sentences([node.health_reason] if node.health_reason else []):
            write(f"{node.node} is {node.health.value}: {line}")


def _write_lacks(items: "Sequence[NodeView]") -> None:
    """Write a line for all nodes that lack the same, so that nobody reads a line for each of a thousand."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for node in items:
        if node.lacks:
            alike.setdefault(node.lacks, []).append(node.node)
    for lacks, names in alike.items():
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        what = ", ".join(lacks_in_words(lacks))
        write(f"{', '.join(names[:NAMED_MAX])}{more} cannot carry: {what}")


def _show(node: "NodeView") -> None:
    write(f"{node.node} is {node.health.value}")
    for line in sentences([node.health_reason] if node.health_reason else []):
        write(f"  {line}")
    for each in node.symptoms:
        where = "the whole node" if each.device < 0 else f"device {each.device}"
        write(f"  it shows {each.signal.value} ({each.words or each.value}) at {where}")
    if node.closed_because:
        write(f"  its engine has closed it: {node.closed_because}")
    if node.lacks:
        write(f"  it cannot carry: {', '.join(lacks_in_words(node.lacks))}")
    if node.fit_at_ns:
        write(f"  it passed a check with others at {moment(node.fit_at_ns)}")
    if node.doubted_with:
        write(f"  it failed a check together with {', '.join(node.doubted_with)}")
