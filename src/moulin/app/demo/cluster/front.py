"""Step 1: a cluster of Slurm, imported as it is, and two teams in front of it."""

import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

from moulin.app.demo.cluster.own_slurm import OwnSlurm, running
from moulin.app.demo.cluster.stage import BIOLOGY, TEAMS_FILE, ClusterStage, client_of
from moulin.app.demo.stage import start, wait_until
from moulin.app.files import read_factory_file
from moulin.app.wiring.slurm import import_slurm
from moulin.domain.units import format_euros
from moulin.domain.words import memory

NODES: Final = 4
CPUS: Final = 2
MEMORY_MB: Final = 3000
# How long a node may say nothing until Slurm calls it down.
TIMEOUT_S: Final = 10
JOIN_S: Final = 30.0
COUNTRY: Final = "FR"
SITE: Final = "campus"
POLL_MS: Final = "500"
POWER: Final = {"idle_power": "100W", "peak_power": "350W"}
AS_IMPORTED: Final = f"{SITE}: {{country: {COUNTRY}}}"
WITH_FIGURES: Final = f"""{SITE}:
    country: {COUNTRY}
    pue: {{value: 1.15, source: assumed for the demo}}
    carbon: {{location: 56.04, source: annual mean for France in codecarbon 3.3.2}}"""


def build_front(stage: ClusterStage) -> dict[str, Any]:
    """Start a Slurm, import it, and put Moulin in front of it with two teams."""
    screen = stage.screen
    make = partial(OwnSlurm, nodes=NODES, cpus=CPUS, memory_mb=MEMORY_MB, timeout_s=TIMEOUT_S)
    with screen.progress("munged, slurmctld and four slurmd start"):
        stage.slurm = stage.at_end.enter_context(running(make))
    screen.good(f"a real Slurm of {NODES} nodes runs on this machine: {stage.slurm.conf}")
    screen.quiet(
        f"Each node claims {CPUS} CPUs and {MEMORY_MB / 1000:g} GB: written, not measured. All of them "
        "are this one machine. So is their power: 100 to 350 W, as an administrator would state it."
    )
    up = start(stage)
    screen.say(f"Moulin is up: control API {up['control_url']}, gateway {up['gateway_url']}.")
    screen.gap()
    file = _import(stage)
    for path in (file, TEAMS_FILE):
        objects = read_factory_file(path)
        done = stage.as_operator.factory.apply(path.name, objects)
        screen.say(f"moulin apply {path}", style="bold")
        screen.good(f"{len(done.diffs)} changes applied as one")
    wait_until(lambda: len(stage.as_operator.status().nodes) == NODES, JOIN_S, "Slurm's nodes join")
    stage.biologists = client_of(stage, BIOLOGY)
    _show(stage)
    return {"nodes": [node.node for node in stage.as_operator.status().nodes]}


def _import(stage: ClusterStage) -> Path:
    screen = stage.screen
    file = stage.workplace / "cluster.yaml"
    words = {"conf": str(stage.cluster.conf), "poll_ms": POLL_MS, "python": sys.executable, **POWER}
    screen.say("The cluster becomes an operator file; nothing in it is changed:")
    screen.say(f"moulin cluster import --country {COUNTRY} --site {SITE} -o {file}", style="bold")
    text = import_slurm(country=COUNTRY, site=SITE, settings=words, is_delegated=False)
    file.write_text(text.replace(AS_IMPORTED, WITH_FIGURES), encoding="utf-8")
    screen.good(f"{len(text.splitlines())} lines; the site's PUE and carbon were added by hand")
    return file


def _show(stage: ClusterStage) -> None:
    status = stage.as_operator.status()
    stage.screen.gap()
    stage.screen.table(
        ("node", "zone", "engine", "CPUs>", "memory>"),
        [
            (n.node, n.zone, n.engine, str(n.cpu_milli // 1000), memory(n.memory_bytes))
            for n in status.nodes
        ],
    )
    stage.screen.gap()
    stage.screen.table(
        ("team", "budget>"),
        [(b.project, f"{format_euros(b.budget_neur)} €") for b in status.balances],
    )
