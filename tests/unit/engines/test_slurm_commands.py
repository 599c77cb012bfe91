"""What is concluded from how Slurm's commands end, whatever ran them."""

from typing import cast

import pytest

from moulin.domain.errors import EngineUnavailable
from moulin.engines.slurm.client import SlurmClient
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.readings import Readings
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import Answer, LocalTransport

LINE = b"7|a|FAILED|2:0|a|b\n"
DISABLED = Answer(1, b"", "Slurm accounting storage is disabled")
AWAY = Answer(1, b"", "sacct: error: slurm_persist_conn_open: failed to connect: refused")
MISSING = Answer(127, b"", "env: 'sacct': No such file or directory")


class Scripted(LocalTransport):
    """Answers that are given one after the other, the last again and again."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked = 0

    def run(self, command, *, stdin=b""):
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_accounting_that_failed_once_is_asked_again():
    driver = Commands(Scripted(AWAY, Answer(0, LINE, "")))
    with pytest.raises(EngineUnavailable, match="failed to connect"):
        driver.recall(["7"])
    found = driver.recall(["7"])
    assert found is not None
    assert (found["7"].state, found["7"].exit_code) == ("FAILED", 2)


@pytest.mark.parametrize("answer", [DISABLED, MISSING])
def test_accounting_that_is_not_there_is_asked_once(answer):
    transport = Scripted(answer, Answer(0, LINE, ""))
    driver = Commands(transport)
    assert driver.recall(["7"]) is None
    assert driver.recall(["7"]) is None
    assert transport.asked == 1


def test_a_program_that_is_not_here_is_no_accounting():
    driver = Commands(LocalTransport({"PATH": "/nowhere"}))
    assert driver.recall(["7"]) is None


def test_accounting_that_failed_is_left_alone_for_a_moment(tmp_path):
    transport = Scripted(AWAY)
    settings = SlurmSettings(directory=tmp_path)
    driver = cast("SlurmClient", Commands(transport))
    cluster = Cluster(Readings(driver), settings, own_comment="moulin:me:")
    for job in ("7", "8", "9"):
        with pytest.raises(EngineUnavailable):
            cluster.recall(job)
    assert transport.asked == 1


@pytest.mark.parametrize(("select", "is_exclusive"), [("linear", True), ("cons_tres", False)])
def test_where_slurm_selects_whole_nodes_partitions_give_whole_nodes(select, is_exclusive):
    partition = Answer(0, b"PartitionName=p Nodes=n1 OverSubscribe=NO\n", "")
    config = Answer(0, f"SelectType              = select/{select}\n".encode(), "")
    driver = Commands(Scripted(partition, config, partition))
    for _ in range(2):
        assert driver.partitions()[0].is_exclusive is is_exclusive
