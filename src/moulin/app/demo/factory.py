"""Step 1: a factory on this machine, from an operator file, with its difference shown."""

from collections.abc import Mapping
from typing import Any, Final

from moulin.app.demo.stage import FACTORY_FILE, Stage, promise, start, wait_until
from moulin.app.files import read_factory_file
from moulin.domain.control import ObjectDiff, ZoneStatus
from moulin.domain.factory import ObjectKind, ZoneState
from moulin.domain.units import format_euros
from moulin.domain.words import memory
from moulin.sources.machine import read_machine

JOIN_S: Final = 20.0
Body = Mapping[str, Any]


def build_factory(stage: Stage) -> dict[str, Any]:
    """Start Moulin, apply the factory file, and show what there is.

    Raises `NotAsPromised` when a second apply would change anything.
    """
    screen = stage.screen
    up = start(stage)
    screen.say(
        f"Moulin is up on this machine: control API {up['control_url']}, gateway {up['gateway_url']}."
    )
    screen.quiet(f"its data is in {stage.data}")
    screen.gap()
    screen.say("The operator declares the factory in one file:")
    screen.say(f"moulin apply {FACTORY_FILE}", style="bold")
    objects = read_factory_file(FACTORY_FILE)
    wanted = stage.as_operator.factory.apply(FACTORY_FILE.name, objects, is_dry_run=True)
    screen.table(("", "", "", ""), [_line(diff) for diff in wanted.diffs])
    stage.as_operator.factory.apply(FACTORY_FILE.name, objects)
    again = stage.as_operator.factory.apply(FACTORY_FILE.name, objects, is_dry_run=True)
    promise(not again.diffs, "applying the same file again would change the factory")
    screen.good(
        f"{len(wanted.diffs)} changes applied as one; applying the file again changes nothing"
    )
    screen.gap()
    zones = _show_places(stage)
    return {
        "changes": len(wanted.diffs),
        "zones": {zone.name: zone.state for zone in zones},
        "node": stage.node.node if stage.node else "",
    }


def _show_places(stage: Stage) -> tuple[ZoneStatus, ...]:
    wait_until(
        lambda: bool(stage.as_operator.status().nodes), JOIN_S, "this machine joins as a node"
    )
    status = stage.as_operator.status()
    stage.node = node = status.nodes[0]
    screen = stage.screen
    screen.table(
        ("zone", "state", "country", "how it is known"),
        [(z.name, z.state, z.country, z.country_basis) for z in status.zones],
    )
    screen.quiet(
        "The country is what the file says: its operator asserts it, nothing has measured it. "
        "On receipts it is marked so."
    )
    machine = read_machine()
    gpus = ", ".join(gpu.name for gpu in machine.gpus) or "no NVIDIA GPU found through NVML"
    screen.gap()
    screen.table(
        ("node", "zone", "cores", "memory", "CPU", "accelerators"),
        [
            (
                *(node.node, node.zone, str(node.cpu_milli // 1000), memory(node.memory_bytes)),
                machine.cpu_model,
                gpus,
            )
        ],
    )
    screen.quiet("Cores, memory and accelerators are read from this machine.")
    promise(
        {zone.state for zone in status.zones} == {ZoneState.OPEN.value, ZoneState.BUILDING.value},
        "the factory does not have one zone open and one being built",
    )
    return status.zones


def _line(diff: ObjectDiff) -> tuple[str, str, str, str]:
    sign = {"create": "+", "update": "~", "delete": "-"}[diff.action]
    kind = diff.kind.value.replace("_", " ")
    return sign, kind, diff.name, _words(diff)


def _words(diff: ObjectDiff) -> str:
    """Return what matters of an object, in its own words."""
    after: Body = diff.after
    match diff.kind:
        case ObjectKind.ORGANISATION:
            return ", ".join(after.get("roles", ()))
        case ObjectKind.SITE:
            return (
                f"{after.get('country')}, {after.get('country_basis', 'asserted by the operator')}"
            )
        case ObjectKind.ZONE:
            return f"{after.get('state', ZoneState.OPEN.value)}, at {after.get('site')}"
        case ObjectKind.POOL:
            return f"engine {after.get('engine')}, in zone {after.get('zone')}"
        case ObjectKind.PROJECT:
            budget = format_euros(int(after.get("budget_neur", -1)))
            quota: Body = after.get("quota", {})
            cpus = int(quota.get("cpu_milli", -1000)) // 1000
            return f"budget {budget} €; quota: CPUs {cpus}, workloads {quota.get('workloads')}"
        case ObjectKind.PRICE_BOOK:
            return f"{len(after.get('prices', ()))} prices: CPU, memory, tokens in and out"
        case _:
            return str(after.get("title", ""))
