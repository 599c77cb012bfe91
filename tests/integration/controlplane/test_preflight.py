"""The check before a gang through the whole control plane: its program, its results, over restarts."""

import json
from dataclasses import replace

import pytest

from moulin.domain.errors import EngineUnavailable, NotFound
from moulin.domain.events import AttemptPlaced
from moulin.domain.factory import Pool
from moulin.domain.node_events import GangChecked
from moulin.domain.observation import Claim, LogChunk
from moulin.domain.plan import StartStep
from moulin.domain.preflight import Preflight
from moulin.domain.workload import WorkloadSpec
from moulin.engines.simulated.world import DURATION_VARIABLE
from moulin.scheduler import node_views
from tests.integration.controlplane.bench import Bench, Machines, factory, job

POOL = Pool(
    name="floor",
    zone="east",
    engine="simulated",
    machine_class="test-machine",
    preflight=Preflight(bytes_per_s_min=10**6, time_limit_s=30),
)


def gang(seconds: int = 20) -> WorkloadSpec:
    return replace(job(seconds), nodes=2, time_limit_s=600)


@pytest.fixture
def started(monkeypatch) -> list[StartStep]:
    """What was started; checks take two seconds, as simulated programs only do what they are told."""
    begun: list[StartStep] = []
    start = Machines.start

    def start_check(self: Machines, step: StartStep) -> Claim:
        begun.append(step)
        if step.task.command[:1] == ("python3",):
            step = replace(step, task=replace(step.task, env={DURATION_VARIABLE: "2"}))
        return start(self, step)

    monkeypatch.setattr(Machines, "start", start_check)
    return begun


@pytest.fixture
def checking(mill: Bench, started: list[StartStep]) -> Bench:
    """A factory that checks the nodes of gangs."""
    declared = [POOL if isinstance(each, Pool) else each for each in factory()]
    mill.apply(*declared)
    mill.turns(2, 1.0)
    return mill


def print_results(mill: Bench, monkeypatch, *rates: int, away: int = 0) -> list[int]:
    """Let the tasks of checks have printed something; `away` times their node cannot be asked."""
    left = [away]

    def logs(step: str, _cursor: int, _limit_bytes: int) -> LogChunk:
        if left[0]:
            left[0] -= 1
            raise EngineUnavailable("the node is away")
        rank = int(step[-1])
        if rank >= len(rates):
            raise NotFound("it never started")
        said = {"moulin_check": 1, "transport": "sockets", "rank": rank, "left": 1 - rank}
        data = json.dumps(said | {"bytes_per_s": rates[rank], "round_trip_ns": 9}).encode()
        return LogChunk(data=data, next_cursor=len(data), is_end=True)

    monkeypatch.setattr(Machines, "logs", lambda _self, *words: logs(*words))
    return left


def test_a_check_is_a_step_of_its_own_program_and_its_gang_follows(checking, started, monkeypatch):
    print_results(checking, monkeypatch, 2 * 10**6, 3 * 10**6)
    view = checking.submit(gang())
    checking.turns(60, 1.0)
    assert checking.state(view.id) == "succeeded"
    assert [each.check_s > 0 for each in checking.events(AttemptPlaced)] == [True, False]
    check, run = started[0], started[-1]
    assert check.task.command[:2] == ("python3", "-c")
    assert json.loads(check.task.command[3])["time_limit_s"] == 30
    assert run.task.command != check.task.command
    [checked] = checking.events(GangChecked)
    assert [each.bytes_per_s for each in checked.links] == [2 * 10**6, 3 * 10**6]
    assert all(node.fit_at_ns for node in node_views(checking.plane.books.schedule))
    # What the check used is its project's, as everything on its nodes is.
    assert checking.money().spent_neur > 0


def test_results_that_cannot_be_read_are_read_later_or_given_up(checking, monkeypatch):
    left = print_results(checking, monkeypatch, 2 * 10**6, 2 * 10**6, away=5)
    view = checking.submit(gang())
    checking.turns(40, 1.0)
    assert left == [0]
    [checked] = checking.events(GangChecked)
    assert len(checked.links) == 2
    checking.turns(20, 1.0)
    assert checking.state(view.id) == "succeeded"


def test_a_node_that_stays_away_keeps_no_gang_from_starting(checking, monkeypatch):
    print_results(checking, monkeypatch, away=10**9)
    view = checking.submit(gang())
    checking.turns(100, 1.0)
    [checked] = checking.events(GangChecked)
    assert (checked.links, "measured nothing" in checked.words) == ((), True)
    assert checking.state(view.id) == "succeeded"


def test_a_control_plane_that_ends_between_check_and_gang_goes_on(checking, monkeypatch):
    print_results(checking, monkeypatch, away=10**9)
    view = checking.submit(gang())
    checking.turns(10, 1.0)
    assert checking.plane.books.schedule.unread_checks
    checking.reopen()
    print_results(checking, monkeypatch, 2 * 10**6, 2 * 10**6)
    checking.turns(40, 1.0)
    assert checking.state(view.id) == "succeeded"
    assert len(checking.events(GangChecked)) == 1


def test_two_nodes_that_fail_together_are_suspect_and_the_gang_waits(checking, monkeypatch):
    print_results(checking, monkeypatch, 5, 5)
    view = checking.submit(gang())
    checking.turns(30, 1.0)
    nodes = node_views(checking.plane.books.schedule)
    assert {node.health.value for node in nodes} == {"suspect"}
    assert checking.state(view.id) == "admitted"
    print_results(checking, monkeypatch, 2 * 10**6, 2 * 10**6)
    checking.turns(640, 1.0)
    assert checking.state(view.id) == "succeeded"
