"""What an engine's own queue makes of placed work: asked when somebody asks why, and written nowhere."""

import pytest

from moulin.controlplane.commands import ExplainWorkload
from moulin.domain.ids import WorkloadId
from moulin.domain.reasons import ReasonCode
from moulin.domain.standing import Standing
from moulin.engines.simulated.world import World
from tests.integration.controlplane.bench import Machines, job

SECOND = 1_000_000_000


class Queued(Machines):
    """Machines behind a queue: what they are given starts after a minute, and says what a test lets it."""

    says: Standing | None = None

    def standings(self, steps):
        """Return the same for every step."""
        return dict.fromkeys(steps, self.says) if self.says is not None else {}


@pytest.fixture
def queued(mill):
    known = mill.floor.capacity()
    found = Queued(World(mill.clock, known, start_delay_ns=60 * SECOND))
    mill.connect = lambda pool: found
    mill.reopen()
    mill.turn(1)
    return found


def why(mill, id):
    return mill.tell(ExplainWorkload(workload=WorkloadId(id)))


def test_changing_reasons_are_told_and_never_written(mill, queued):
    view = mill.submit(job(10))
    mill.turns(5, 1.0)
    assert mill.state(view.id) == "placed"
    assert why(mill, view.id).reasons == ()
    before = mill.store.last_sequence()
    for word in ("Priority", "Resources", "PartitionDown"):
        queued.says = Standing(engine="Slurm", job="12", word=word, expected_ns=5)
        told = why(mill, view.id)
        assert told.reasons[0].parameters["word"] == word
        assert told.reasons[0].code is ReasonCode.ENGINE_HOLDS
        [task] = told.workload.units[0].tasks
        assert (task.job, task.waits_for, task.expected_ns) == ("12", word, 5)
    assert mill.store.last_sequence() == before
    # The stored row is what events say: nobody's queue is in it.
    assert mill.row(view.id).units[0].tasks[0].job == ""


def test_what_runs_keeps_its_number_and_waits_for_nothing(mill, queued):
    queued.says = Standing(engine="Slurm", job="12", word="Resources")
    view = mill.submit(job(10))
    mill.turn(1)
    mill.turn(61)
    told = why(mill, view.id)
    assert told.workload.state == "running"
    assert told.reasons == ()
    [task] = told.workload.units[0].tasks
    assert (task.job, task.waits_for) == ("12", "")


def test_engines_without_a_queue_are_not_asked(mill):
    view = mill.submit(job(10))
    mill.turn(1)
    assert why(mill, view.id).workload.units[0].tasks[0].job == ""
