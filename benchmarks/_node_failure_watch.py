"""The gang that `node_failure` strikes, watched from outside by what its tasks write."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks._crash_load import Job
from benchmarks._crash_tasks import Lives, duplicated, read_lives
from benchmarks._moulin import wait_for
from moulin.domain.errors import MoulinError
from moulin.domain.health import Verdict
from moulin.domain.workload import (
    Resources,
    Retry,
    TaskTemplate,
    Where,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.sdk import Moulin

PROGRAM: Final = Path(__file__).with_name("_crash_program.py")
FOR_EVER_S: Final = 36_000
TIME_LIMIT_S: Final = 1_700  # the smaller partition of the tests' cluster gives half an hour
BEGUN_S_MAX: Final = 120.0
RESTARTED_S_MAX: Final = 180.0
NOTICED_S_MAX: Final = 120.0
MENDED_S_MAX: Final = 120.0
# A task writes ten times a second.
ALIVE_S: Final = 2.0
# How long a restart that must not come is waited for once the silence is over.
AFTER_S: Final = 4.0
RESOURCES: Final = Resources(cpu_milli=500, memory_bytes=60 * 10**6)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What became of one blow; times in seconds, None for what never came."""

    engine: str
    kind: str
    is_failure: bool
    noticed_s: float | None
    restarted_s: float | None
    wrongs: tuple[str, ...] = ()


@dataclass
class Gang:
    """A gang that runs for ever, and the client that asks for it."""

    engine: str
    client: Moulin
    job: Job
    effects: Path
    cases: list[Case] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        engine: str,
        client: Moulin,
        folder: Path,
        *,
        ranks: int,
        resources: Resources = RESOURCES,
        name: str = "gang",
        zone: str = "",
    ) -> "Gang":
        """Start one and return once all its tasks write."""
        job = Job(name=name, mode="plain", ranks=ranks, seconds=FOR_EVER_S)
        effects = folder / "effects"
        effects.mkdir(exist_ok=True)
        gang = cls(engine, client, job, effects)
        job.id = client.workloads.submit(gang.spec(resources, zone), idempotency_key=name).id
        gang.until_it_runs(0)
        return gang

    def spec(self, resources: Resources, zone: str) -> WorkloadSpec:
        """Return what is asked for."""
        file = f"{self.effects}/{self.job.name}.$RANK"
        run = f'exec python3 -I -S {PROGRAM} "{file}" {self.job.seconds} {self.job.mode}'
        return WorkloadSpec(
            kind=WorkloadKind.JOB,
            name=self.job.name,
            resources=resources,
            nodes=self.job.ranks,
            where=Where(zones=(zone,) if zone else ()),
            task=TaskTemplate(command=("sh", "-c", run)),
            retry=Retry(attempts_max=1),
            time_limit_s=TIME_LIMIT_S,
            stop_grace_s=2,
        )

    # -- what its tasks say -------------------------------------------------------------------

    def lives(self) -> Lives:
        """Return what every generation wrote."""
        return read_lives(self.job, self.effects)

    def generation(self) -> int:
        """Return the newest generation of which every task wrote."""
        whole = [g for g, ranks in self.lives().items() if len(ranks) == self.job.ranks]
        return max(whole, default=0)

    def pids(self) -> list[int]:
        """Return the processes of the newest generation, by rank."""
        lives = self.lives()
        newest = lives[max(lives)]
        return [int(next(iter(newest[rank].starts))) for rank in sorted(newest)]

    def is_alive(self) -> bool:
        """Say whether every task of the newest generation writes now."""
        newest = self.lives().get(self.generation(), {})
        since_ns = time.monotonic_ns() - int(ALIVE_S * 1e9)
        return bool(newest) and all(life.last_ns > since_ns for life in newest.values())

    def until_it_runs(self, former: int) -> None:
        """Return once a generation after `former` runs; raise when none does."""
        if not wait_for(lambda: self.generation() > former and self.is_alive(), BEGUN_S_MAX):
            view = self.client.workloads.get(self.job.id)
            why = self.client.workloads.why(self.job.id)
            raise RuntimeError(f"{self.job.name} is {view.state}, not running: {why.reasons}")

    # -- what Moulin says ---------------------------------------------------------------------

    def nodes(self) -> list[str]:
        """Return where its tasks are, by rank."""
        (unit,) = self.client.workloads.get(self.job.id).units
        return [task.node for task in sorted(unit.tasks, key=lambda task: task.rank)]

    def is_ill(self, node: str) -> bool:
        """Say whether Moulin knows that a node is not as it should be."""
        with contextlib.suppress(MoulinError):
            for found in self.client.factory.nodes().items:
                if found.node == node:
                    return not found.is_reachable or found.health is Verdict.QUARANTINED
            return True  # it has left
        return False

    # -- blows --------------------------------------------------------------------------------

    def fails(
        self,
        kind: str,
        node: str,
        strike: Callable[[], None],
        heal: Callable[[], None],
        *,
        is_back: bool = False,
    ) -> None:
        """Strike a node so that there is evidence; note what became of the gang; heal.

        The gang has to run on others then, unless the node `is_back` by itself.
        """
        former, begin_ns = self.generation(), time.monotonic_ns()
        say(f"{self.engine}: {kind} on {node}")
        strike()
        # A node that is soon back may say itself what it lost, and is never called ill.
        noticed_s = self._after_s(
            begin_ns, lambda: self.is_ill(node) or self.generation() > former, NOTICED_S_MAX
        )
        restarted_s, wrongs = None, []
        if wait_for(lambda: self.generation() > former, RESTARTED_S_MAX):
            if is_back or node not in self.nodes():
                restarted_s = self._begun_s(begin_ns)
            else:
                wrongs.append(f"generation {self.generation()} on {node} again")
        heal()
        self._wait_until_well()
        self._note(kind, former + 1, noticed_s, restarted_s, is_failure=True, wrongs=wrongs)

    def is_silent(
        self,
        kind: str,
        node: str,
        begin: Callable[[], None],
        end: Callable[[], None],
        *,
        seconds_max: float,
    ) -> bool:
        """Let a node be silent until that is noticed, or for so long; say whether it was noticed."""
        former, begin_ns = self.generation(), time.monotonic_ns()
        say(f"{self.engine}: {kind} on {node}")
        begin()
        noticed_s = self._after_s(begin_ns, lambda: self.is_ill(node), seconds_max)
        end()
        self._wait_until_well()
        time.sleep(AFTER_S)
        self._note(kind, former, noticed_s, None, is_failure=False)
        return noticed_s is not None

    def end(self) -> None:
        """Stop it and wait for its end."""
        self.client.workloads.stop(self.job.id)
        self.client.workloads.wait(self.job.id, timeout_s=BEGUN_S_MAX)

    def _wait_until_well(self) -> None:
        """Take nodes that are there again out of quarantine, as who repaired them does."""
        if not wait_for(self._are_all_well, MENDED_S_MAX):
            raise RuntimeError(f"nodes do not get well: {self.client.factory.nodes().items}")

    def _are_all_well(self) -> bool:
        with contextlib.suppress(MoulinError):
            for node in self.client.factory.nodes().items:
                if node.is_reachable and not node.symptoms and node.health is not Verdict.HEALTHY:
                    self.client.factory.release(node.node, "repaired")
            found = self.client.factory.nodes().items
            return all(n.is_reachable and n.health is Verdict.HEALTHY for n in found)
        return False

    def _after_s(
        self, begin_ns: int, is_so: Callable[[], bool], seconds_max: float
    ) -> float | None:
        came = wait_for(is_so, seconds_max)
        return (time.monotonic_ns() - begin_ns) / 1e9 if came else None

    def _begun_s(self, begin_ns: int) -> float:
        newest = self.lives()[self.generation()]
        return (max(life.first_ns for life in newest.values()) - begin_ns) / 1e9

    def _note(
        self,
        kind: str,
        expected: int,
        noticed_s: float | None,
        restarted_s: float | None,
        *,
        is_failure: bool,
        wrongs: Sequence[str] = (),
    ) -> None:
        lives = self.lives()
        wrongs = [*wrongs, *(f"generation {g} for nothing" for g in sorted(lives) if g > expected)]
        wrongs += duplicated(self.job, [], lives, [])
        if not wait_for(self.is_alive, BEGUN_S_MAX):
            wrongs.append("it does not run any more")
        known = {wrong for case in self.cases for wrong in case.wrongs}
        case = Case(
            engine=self.engine,
            kind=kind,
            is_failure=is_failure,
            noticed_s=noticed_s and round(noticed_s, 1),
            restarted_s=restarted_s and round(restarted_s, 1),
            wrongs=tuple(wrong for wrong in wrongs if wrong not in known),
        )
        say(f"{case}")
        self.cases.append(case)


def say(words: str) -> None:
    """Tell how it goes."""
    print(time.strftime("%H:%M:%S"), words, file=sys.stderr, flush=True)
