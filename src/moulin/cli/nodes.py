"""Commands about machines: which there are, how well they are, and what an operator says of them."""

from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.screen import answer, sentences, table, write
from moulin.cli.session import Data, IsJson, connect
from moulin.domain.words import cpus, memory

if TYPE_CHECKING:
    from moulin.domain.views import NodeView

app = typer.Typer(rich_markup_mode=None)
Node = Annotated[str, typer.Argument(metavar="NODE", help="Its name.")]
Words = Annotated[str, typer.Option("--because", help="Why; shown with the node.")]


@app.callback(invoke_without_command=True)
def nodes(context: typer.Context, data: Data = None, is_json: IsJson = False) -> None:
    """List the nodes: what is held on them and how well they are."""
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
        ("node", "zone", "class", "cpus held>", "memory held>", "accelerators>", "state", "health"),
        (
            (
                *(node.node, node.zone, node.machine_class),
                f"{cpus(node.cpu_milli_held)} of {cpus(node.cpu_milli)}",
                f"{memory(node.memory_bytes_held)} of {memory(node.memory_bytes)}",
                f"{node.accelerators_held} of {node.accelerators}" if node.accelerators else "-",
                "reachable" if node.is_reachable else "unreachable",
                node.health.value,
            )
            for node in items
        ),
        empty="no nodes",
    )
    for node in items:
        for line in sentences([node.health_reason] if node.health_reason else []):
            write(f"{node.node} is {node.health.value}: {line}")


def _show(node: "NodeView") -> None:
    write(f"{node.node} is {node.health.value}")
    for line in sentences([node.health_reason] if node.health_reason else []):
        write(f"  {line}")
    for each in node.symptoms:
        where = "the whole node" if each.device < 0 else f"device {each.device}"
        write(f"  it shows {each.signal.value} ({each.value}) at {where}")
