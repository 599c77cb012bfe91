"""Commands about the factory as a whole: what there is, and what an operator file changes."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.nodes import reach, write_troubles
from moulin.cli.screen import answer, say, table, write
from moulin.cli.session import Data, IsJson, connect
from moulin.domain.errors import InvalidRequest
from moulin.domain.words import cpus, euros, memory

if TYPE_CHECKING:
    from moulin.domain.control import Applied, FactoryStatus, ObjectDiff
    from moulin.domain.factory import ObjectKind
    from moulin.sdk import Moulin

app = typer.Typer(rich_markup_mode=None)
VALUE_CHARACTERS_MAX = 60


@app.command()
def status(data: Data = None, is_json: IsJson = False) -> None:
    """Show the factory at a glance: zones, nodes, workloads and money."""
    with connect(data, is_operator=True) as client:
        found = client.status()
        url = client.credentials.control_url
    answer(found, is_json=is_json, show=lambda: _show_status(found, url))


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Operator file (YAML).")],
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the difference and change nothing.")
    ] = False,
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Make the factory equal to an operator file.

    The difference is shown first; then all of it is applied, or nothing. Objects that the file declared earlier and no longer names are removed, unless something uses
    them. Objects of other files are left alone. Applying a file twice changes nothing.

    \b
    Examples:
      moulin apply factory.yaml --dry-run
      moulin apply factory.yaml --yes
    """
    from moulin.app.files import read_factory_file

    with connect(data, is_operator=True) as client:
        objects = read_factory_file(file, known=_known(client, file.name))
        wanted = client.factory.apply(file.name, objects, is_dry_run=True)
        if not is_json:
            _show_diff(wanted)
        if is_dry_run or not wanted.diffs:
            answer(wanted, is_json=is_json, show=lambda: None)
            return
        if not is_sure:
            _confirm(wanted)
        applied = client.factory.apply(file.name, objects)
    count = len(applied.diffs)
    answer(applied, is_json=is_json, show=lambda: say(f"applied {count} change(s) of {file}"))


def _known(client: "Moulin", managed_by: str) -> "dict[ObjectKind, list[str]]":
    """Return the names that other files declare, by kind."""
    from moulin.domain.factory import ObjectKind

    known: dict[ObjectKind, list[str]] = {kind: [] for kind in ObjectKind}
    for view in client.factory.get().items:
        if view.managed_by != managed_by:
            known[ObjectKind(view.kind)].append(view.name)
    return known


def _confirm(wanted: "Applied") -> None:
    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"apply {len(wanted.diffs)} change(s): nobody is here to say yes",
            hint="look at the difference, then add --yes",
        )
    typer.confirm("Apply this?", abort=True, err=True)


def _show_diff(wanted: "Applied") -> None:
    if not wanted.diffs:
        say("nothing to change: the factory is as the file says")
    for diff in wanted.diffs:
        write(f"{diff.action} {diff.kind.value.replace('_', ' ')} {diff.name}")
        for line in _changed(diff):
            write(f"    {line}")


def _changed(diff: "ObjectDiff") -> Iterator[str]:
    if diff.action != "update":
        return
    before, after = _flat(diff.before), _flat(diff.after)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield f"{name}: {_short(before.get(name))} -> {_short(after.get(name))}"


def _flat(body: Mapping[str, object], path: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in body.items():
        inner = f"{path}{name}"
        found |= _flat(value, f"{inner}.") if isinstance(value, Mapping) else {inner: value}
    return found


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}…"


def _show_status(found: "FactoryStatus", url: str) -> None:
    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items() if count)
    write(f"Moulin {found.version} at {url}; workloads: {counts or 'none'}")
    write("")
    table(
        ("zone", "state", "site", "country", "known", "nodes>", "power held>"),
        (
            (
                *(zone.name, zone.state, zone.site, zone.country or "?", zone.country_basis),
                str(zone.nodes),
                f"{zone.power_held_w} W"
                + (f" of {zone.power_envelope_w} W" if zone.power_envelope_w else ""),
            )
            for zone in found.zones
        ),
        empty="no zones",
    )
    write("")
    table(
        (
            *("node", "zone", "engine", "class", "cpus held>", "memory held>", "accelerators>"),
            *("state", "health"),
        ),
        (
            (
                *(node.node, node.zone, node.engine, node.machine_class),
                f"{cpus(node.cpu_milli_held)} of {cpus(node.cpu_milli)}",
                f"{memory(node.memory_bytes_held)} of {memory(node.memory_bytes)}",
                f"{node.accelerators_held} of {node.accelerators}" if node.accelerators else "-",
                reach(node),
                node.health.value,
            )
            for node in found.nodes
        ),
        empty="no nodes",
    )
    write_troubles(found.nodes)
    write("")
    table(
        ("project", "organisation", "budget>", "spent>", "reserved>"),
        (
            (
                *(each.project, each.organisation),
                "none" if each.budget_neur < 0 else euros(each.budget_neur),
                euros(each.spent_neur),
                euros(each.reserved_neur + each.granted_neur),
            )
            for each in found.balances
        ),
        empty="no projects",
    )
