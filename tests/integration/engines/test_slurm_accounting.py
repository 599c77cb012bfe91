"""The Slurm engine where Slurm keeps accounts: what it remembers of ended jobs, and what it limits."""

import pytest

from moulin.app.files import parse_mapping
from moulin.app.wiring.slurm import import_slurm
from moulin.catalog.machines import MACHINE_CLASSES
from moulin.domain.errors import EngineRefused
from moulin.domain.factory import Project
from moulin.domain.factoryfile import parse_factory
from moulin.domain.observation import Claim, TaskPhase
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import LocalTransport
from tests.conformance.engine_bench import EffectsInFiles, RealClock, wait_until
from tests.integration.engines.test_slurm_arrays import all_ended, counted, elements

pytestmark = pytest.mark.slurm


class AccountBench(EffectsInFiles):
    """The engine of a pool whose jobs go to one account."""

    def __init__(self, directory, cluster, account):
        super().__init__(directory)
        self.driver = Commands(LocalTransport(cluster.environment))
        settings = SlurmSettings(
            directory=directory, machine_class="here", account=account, poll_s=0.2
        )
        self.engine = SlurmEngine(settings, self.driver, clock=RealClock())

    def pause(self):
        return None


def make_account(cluster, name):
    cluster.run("sacctmgr", "-i", "add", "account", name, "cluster=mill")
    cluster.run("sacctmgr", "-i", "add", "user", "root", "cluster=mill", f"account={name}")


def limit(cluster, name, jobs):
    where = ("where", f"name={name}", "cluster=mill", "set", f"GrpSubmitJobs={jobs}")
    cluster.run("sacctmgr", "-i", "modify", "account", *where)


def test_accounting_recalls_elements_and_how_they_ended(tmp_path, accounted_cluster):
    make_account(accounted_cluster, "history")
    bench = AccountBench(tmp_path, accounted_cluster, "history")
    steps = elements(2, counted(tmp_path, "exit $MOULIN_UNIT"), nodes=("a-0",))
    bench.engine.start_many(steps)
    all_ended(bench, steps, TaskPhase.EXITED)
    number = next((tmp_path / "spool" / ".arrays").glob("*/job")).read_text().strip()
    keys = (f"{number}_0", f"{number}_1")

    def found():
        return bench.driver.recall(keys) or {}

    wait_until(lambda: all(key in found() and found()[key].has_ended for key in keys))
    assert [found()[key].state for key in keys] == ["COMPLETED", "FAILED"]
    assert [found()[key].exit_code for key in keys] == [0, 1]


def test_an_account_that_is_full_makes_elements_wait_and_refuses_none(tmp_path, accounted_cluster):
    make_account(accounted_cluster, "narrow")
    limit(accounted_cluster, "narrow", 2)
    bench = AccountBench(tmp_path, accounted_cluster, "narrow")
    steps = elements(4, counted(tmp_path, "sleep 1"), nodes=("a-0",))
    answers = bench.engine.start_many(steps)
    assert not any(isinstance(answer, EngineRefused) for answer in answers)
    left = list(steps)

    def all_are_in():
        said = bench.engine.start_many(left)
        assert not any(isinstance(answer, EngineRefused) for answer in said)
        left[:] = [s for s, answer in zip(left, said, strict=True) if not isinstance(answer, Claim)]
        return not left

    wait_until(all_are_in)
    all_ended(bench, steps, TaskPhase.EXITED)
    assert [bench.runs(each.step) for each in steps] == [1] * 4


def test_an_account_that_is_none_is_refused(tmp_path, accounted_cluster):
    bench = AccountBench(tmp_path, accounted_cluster, "nobodys")
    answers = bench.engine.start_many(elements(1, counted(tmp_path), nodes=("a-0",)))
    assert "Invalid account" in str(answers[0])


def test_accounts_are_imported_as_projects_and_the_file_can_be_applied(accounted_cluster):
    make_account(accounted_cluster, "lattice")
    where = ("where", "name=lattice", "cluster=mill", "set")
    limits = ("GrpTRES=cpu=2,mem=4G,gres/gpu=1", "GrpTRESMins=cpu=600", "GrpJobs=7")
    accounted_cluster.run("sacctmgr", "-i", "modify", "account", *where, *limits)
    text = import_slurm(
        country="FR",
        site="campus",
        settings={"conf": accounted_cluster.environment["SLURM_CONF"], "directory": "/shared"},
        is_delegated=False,
    )
    objects = parse_factory(
        parse_mapping(text.encode(), origin="cluster.yaml"), registry=MACHINE_CLASSES
    )
    [project] = [each for each in objects if isinstance(each, Project) and each.name == "lattice"]
    quota = project.quota
    assert (project.organisation, quota.cpu_milli, quota.accelerators) == ("lattice", 2000, 1)
    assert (quota.memory_bytes, quota.workloads) == (4 << 30, 7)
    assert "# 1 user; GrpTRESMins cpu=600" in text
    assert "moulin-project-" not in text
    assert '"directory": "/shared"' in text
