"""Does anything get lost, done twice, left behind or charged wrong when Moulin's processes are killed?

A real `moulin up` on two nodes of this machine works under load (single tasks, gangs, retries, a real
model behind the gateway, budgets) while control plane, gateway, shims and replicas get SIGKILL at
random points. With `--engine slurm` the jobs run on a real Slurm of four nodes, whose slurmctld and
slurmd are killed as well and come back, some of them only after Slurm gave their node up. The
judgement comes from outside: what each task appended to its own file, what each client got, which
processes live, which jobs Slurm has, and whether the money adds up. Numbers after `kills` and `tasks`
must be 0.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._crash_census import Census, own_processes, step_processes, unowned
from benchmarks._crash_kills import Killer
from benchmarks._crash_load import Job, Load, Notes
from benchmarks._crash_money import (
    BudgetWatch,
    judge_balances,
    judge_calls,
    judge_energy,
    judge_jobs,
    judge_ledger,
    unreceipted,
)
from benchmarks._crash_plants import LocalPlant, SlurmPlant
from benchmarks._crash_tasks import Lives, duplicated, lost, read_lives
from benchmarks._crash_world import World, deploy, lend_model, make_world, write_factory
from benchmarks._moulin import up, wait_for
from benchmarks._plants import slurm
from moulin.domain.views import ReceiptView, WorkloadView
from moulin.domain.workload import FINAL_WORKLOAD_STATES
from moulin.sdk import Moulin

ENGINES = ("local", "slurm")
KINDS = ("lost", "duplicated", "orphaned", "unbalanced")
INTERVAL_S = 3
END_S_MAX = 300.0
SETTLED_S_MAX = 120.0
Findings = dict[str, list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say how many kills, and which."""
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="where jobs run")
    parser.add_argument("--kills", type=int, default=100, help="processes to kill")
    parser.add_argument("--seed", type=int, default=1, help="decides whom, and the load")
    parser.add_argument("--pause", type=float, default=1.2, help="mean seconds between kills")
    parser.add_argument("--no-model", action="store_true", help="jobs only: quicker to try")
    parser.add_argument("--keep", type=Path, default=None, help="folder to leave the evidence in")


def result_name(options: argparse.Namespace) -> str:
    """Return the name of the result's file."""
    return "crash" if options.engine == ENGINES[0] else f"crash_{options.engine}"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start, load, kill, wait, judge, stop, look what is left."""
    with tempfile.TemporaryDirectory(prefix="moulin-crash-") as name:
        folder = (options.keep or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        return drill(folder, options)


def drill(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Do it all in a folder, which must be empty; whatever happens, nothing is left running."""
    data = folder / "data"
    if not options.no_model:
        lend_model(data)
    begin_s = time.monotonic()
    with plant_of(options, data) as plant:
        words = ("--factory", str(write_factory(folder, plant.pools)), "--nodes", "2")
        interval = ("--metering-interval", str(INTERVAL_S))
        with up(data, *words, *interval, log=folder / "up.log") as running:
            world = make_world(running, folder / "effects", plant.zone)
            if not options.no_model:
                say("deploying the model")
                deploy(world, 300.0)
            told = Evidence(world, plant, *kill_under_load(world, plant, options))
            findings = judge(told)
            numbers = summary(told, findings)
        findings["orphaned"] += left_behind(data, plant)
    findings["unbalanced"] += judge_ledger(data / "moulin.sqlite")
    for kind in KINDS:
        for words_of in findings[kind][:20]:
            say(f"{kind}: {words_of}")
    counted = {kind: len(found) for kind, found in findings.items()}
    return {
        **numbers,
        **counted,
        "engine": options.engine,
        "seed": options.seed,
        "seconds": round(time.monotonic() - begin_s),
        "findings": [f"{kind}: {found}" for kind in KINDS for found in findings[kind][:20]],
    }


@contextlib.contextmanager
def plant_of(options: argparse.Namespace, data: Path) -> Iterator[LocalPlant]:
    """Run what tasks run on until the block ends."""
    if options.engine == "local":
        yield LocalPlant(data)
        return
    with slurm() as cluster:
        plant = SlurmPlant(data, cluster, random.Random(options.seed + 1))
        try:
            yield plant
        finally:
            plant.close()


def kill_under_load(
    world: World, plant: LocalPlant, options: argparse.Namespace
) -> tuple[Notes, Killer, Census, BudgetWatch]:
    """Load and kill; return what was noted by everybody."""
    dice = random.Random(options.seed)
    killer = Killer(world.running.data, plant, dice, world.running.is_whole, say)
    load = Load(world, options.seed, has_model=not options.no_model)
    census, watch = Census(plant.spools()), BudgetWatch(world)
    for each in (load, census, watch):
        each.start()
    try:
        time.sleep(2)
        killer.run(options.kills, (options.pause * 0.1, options.pause * 1.9))
        say("no more kills; waiting for what is under way")
        plant.mend()
    finally:
        load.stop()
    return load.notes, killer, census, watch


@dataclass
class Evidence:
    """What the judgement rests on: notes from outside, and what the API says to compare them with."""

    world: World
    plant: LocalPlant
    notes: Notes
    killer: Killer
    census: Census
    watch: BudgetWatch

    def views(self) -> dict[str, list[WorkloadView]]:
        """Return the jobs of the control plane by name."""
        found: dict[str, list[WorkloadView]] = {}
        with self.world.client() as operator:
            for view in operator.workloads.every(kind="job"):
                found.setdefault(view.name, []).append(view)
        return found

    def receipts(self) -> list[ReceiptView]:
        """Return every receipt."""
        with self.world.client() as operator:
            return list(_every_receipt(operator))

    def lives(self) -> dict[str, Lives]:
        """Return what tasks wrote, by job."""
        return {job.name: read_lives(job, self.world.effects) for job in self.notes.jobs}


def judge(told: Evidence) -> Findings:
    """Wait for everything to end and to be charged, then say what is wrong."""
    jobs, kills = told.notes.jobs, told.killer.kills
    wait_for(told.world.running.is_whole, END_S_MAX)
    wait_for(lambda: _are_final(told.views(), jobs), END_S_MAX)
    ran = {name for name, lives in told.lives().items() if lives}
    say("everything ended; waiting for receipts")
    unsettled = _last_unsettled(told, ran)
    told.census.stop()
    told.watch.stop()
    views, lives = told.views(), told.lives()
    findings: Findings = {kind: [] for kind in KINDS}
    for job in jobs:
        named = views.get(job.name, [])
        findings["lost"] += lost(job, named, lives[job.name], kills)
        findings["duplicated"] += duplicated(job, named, lives[job.name], kills)
    findings["orphaned"] += told.census.orphans.values()
    findings["orphaned"] += unowned(*told.plant.spools()).values()
    findings["orphaned"] += _not_ours(told, views)
    findings["unbalanced"] += sorted(set(told.watch.found))
    findings["unbalanced"] += unsettled
    return findings


def left_behind(data: Path, plant: LocalPlant) -> Iterator[str]:
    """Yield processes, and jobs of a cluster, that outlived `moulin down`."""
    for pid, what in {**step_processes(*plant.spools()), **own_processes(data)}.items():
        yield f"after down: {what} (pid {pid})"
    yield from (f"after down: {what}" for what in plant.left())


def summary(told: Evidence, findings: Findings) -> dict[str, Any]:
    """Return the numbers, the four judged ones first."""
    notes, kills, receipts = told.notes, told.killer.kills, told.receipts()
    calls = notes.all_calls()
    by_kind: dict[str, int] = {}
    for kill in kills:
        by_kind[kill.kind] = by_kind.get(kill.kind, 0) + 1
    return {
        "kills": len(kills),
        "tasks": sum(job.ranks for job in notes.jobs if job.id),
        **{kind: len(findings[kind]) for kind in KINDS},
        "kills_by_kind": by_kind,
        "jobs": sum(bool(job.id) for job in notes.jobs),
        "generations": sum(len(lives) for lives in told.lives().values()),
        "calls": len(calls),
        "calls_answered": sum(call.is_full for call in calls),
        "calls_cut": sum(call.has_begun and not call.is_full for call in calls),
        "calls_refused_by_budget": sum(call.status == 402 for call in calls),
        "calls_unconnected": notes.unconnected,
        "receipts": len(receipts),
        "receipts_estimated": sum(receipt.usage.is_estimated for receipt in receipts),
    }


def _are_final(views: dict[str, list[WorkloadView]], jobs: Sequence[Job]) -> bool:
    states = {view.id: view.state for found in views.values() for view in found}
    return all(states.get(job.id) in FINAL_WORKLOAD_STATES for job in jobs if job.id)


def _last_unsettled(told: Evidence, ran: set[str]) -> list[str]:
    """Return what is still wrong with money when nothing is any more, or when the time is over."""
    until_s = time.monotonic() + SETTLED_S_MAX
    while (found := list(_unsettled(told, ran))) and time.monotonic() < until_s:
        time.sleep(0.2)
    return found


def _unsettled(told: Evidence, ran: set[str]) -> Iterator[str]:
    """Yield what is wrong with money now; much of it becomes right with the next intervals."""
    receipts = told.receipts()
    with told.world.client() as operator:
        balances = operator.status().balances
        endpoints = list(operator.endpoints.every())
    if len(told.receipts()) != len(receipts):
        yield "receipts are still being issued"
        return
    reserved: dict[str, int] = {}
    for view in endpoints:
        reserved[view.project] = reserved.get(view.project, 0) + view.reserved_neur
    by_id = {receipt.id: receipt for receipt in receipts}
    yield from judge_calls(told.notes.all_calls(), by_id)
    yield from judge_energy(receipts)
    yield from unreceipted(told.world.running.data / "moulin.sqlite")
    yield from judge_jobs(told.notes.jobs, ran, receipts)
    yield from judge_balances(balances, receipts, reserved)


def _not_ours(told: Evidence, views: dict[str, list[WorkloadView]]) -> Iterator[str]:
    """Yield processes of jobs that have ended, and of Moulin beyond one of each kind."""
    data = told.world.running.data
    ended = {
        view.id for found in views.values() for view in found if view.state in FINAL_WORKLOAD_STATES
    }
    for pid, directory in step_processes(*told.plant.spools()).items():
        workload = Path(directory).parent.name.partition(".")[0]
        if workload in ended:
            yield f"{directory} (pid {pid}) though its job has ended"
    names = sorted(own_processes(data).values())
    for name in sorted(set(names)):
        if names.count(name) > 1:
            yield f"{names.count(name)} processes of {name}"


def _every_receipt(operator: Moulin) -> Iterator[ReceiptView]:
    cursor = ""
    while True:
        page = operator.receipts.page(cursor=cursor, limit=1000)
        yield from page.items
        cursor = page.next
        if not cursor:
            return


def say(words: str) -> None:
    """Tell how it goes."""
    print(time.strftime("%H:%M:%S"), words, file=sys.stderr, flush=True)
