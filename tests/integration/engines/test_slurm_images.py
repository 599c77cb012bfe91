"""Images on a real Slurm, by stand-ins of the tools: what they are told, and that the contract holds.

`srun` is Slurm's own: only the options of pyxis are taken away and kept. The stand-in of Apptainer runs
the program without any image. Neither tool itself is tried here.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from moulin.domain.errors import EngineRefused
from moulin.domain.observation import TaskPhase
from moulin.domain.workload import TaskTemplate
from moulin.engines.slurm.commands import Commands
from moulin.engines.slurm.engine import SlurmEngine
from moulin.engines.slurm.settings import SlurmSettings
from moulin.engines.slurm.transport import LocalTransport
from tests.conformance.engine_bench import (
    RealClock,
    SlurmBench,
    make_step,
    phase,
    wait_for,
    wait_until,
)

pytestmark = pytest.mark.slurm
SRUN = """\
#!/bin/sh
case "$1" in --help) echo "      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH"; exit;; esac
kept="$(for word; do case "$word" in --*container*) echo "$word";; esac; done)"
[ -z "$kept" ] || echo "$kept" >> {folder}/told
for word; do
    shift
    case "$word" in --*container*) ;; *) set -- "$@" "$word";; esac
done
exec {srun} "$@"
"""
APPTAINER = """\
#!/bin/sh
for word; do echo "$word" >> {folder}/told; done
while [ "${{1#docker}}" = "$1" ]; do shift; done
shift
PATH="${{APPTAINERENV_PATH:-$PATH}}" exec "$@"
"""


class ToolBench(SlurmBench):
    """A pool whose nodes have one of the stand-ins, and the place where those say what they were told."""

    def renew(self) -> None:
        found = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        settings = SlurmSettings(directory=self.directory, machine_class="here", poll_s=0.2)
        driver = Commands(LocalTransport({**self.cluster.environment, "PATH": found}))
        self.engine = SlurmEngine(settings, driver, clock=RealClock())

    def told(self) -> list[str]:
        return (self.directory / "told").read_text().splitlines()


@pytest.fixture
def bench(tmp_path, slurm_cluster):
    (tmp_path / "bin").mkdir()
    made = ToolBench(tmp_path, slurm_cluster)
    yield made
    made.close()


def have(bench, name, text) -> None:
    srun = slurms_own(bench)
    path = bench.directory / "bin" / name
    path.write_text(text.format(folder=bench.directory, srun=srun))
    path.chmod(0o755)


def slurms_own(bench) -> str:
    return bench.cluster.run("sh", "-c", "command -v srun")


def in_image(script, **fields) -> TaskTemplate:
    image = "docker://registry.example/mill/grind:2"
    return TaskTemplate(command=("sh", "-c", script), image=image, **fields)


@pytest.mark.skipif(shutil.which("apptainer") is not None, reason="Apptainer is here")
def test_where_neither_tool_is_found_it_is_refused_with_what_to_install(bench):
    step = make_step("a", in_image("true"))
    with pytest.raises(EngineRefused, match="needs pyxis or Apptainer") as refused:
        bench.engine.start(step)
    assert "install Apptainer" in refused.value.hint
    assert phase(bench, step.step) is TaskPhase.ABSENT


def test_pyxis_is_told_the_image_and_the_program_keeps_its_place(bench):
    have(bench, "srun", SRUN)
    script = 'echo "$RANK $SLURM_PROCID of $SLURM_NTASKS"; exit $((RANK + 5))'
    nodes = ("node-0", "node-1")
    steps = [make_step("g", in_image(script), rank=rank, nodes=nodes) for rank in (0, 1)]
    for step in steps:
        bench.engine.start(step)
    for rank, step in enumerate(steps):
        assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 5 + rank
        log = bench.engine.logs(step.step, 0, 1000).data.decode()
        assert f"{rank} {rank} of 2" in log.splitlines()  # srun adds a word on the status
    assert bench.told().count("--container-image=registry.example#mill/grind:2") == 2
    directory = f"{bench.directory}/spool/{steps[0].attempt}/0"
    assert any(f"{directory}:{directory}" in word for word in bench.told())


@pytest.mark.parametrize("is_polite", [True, False])
def test_a_stop_reaches_a_program_that_only_slurm_can_reach(bench, is_polite):
    have(bench, "srun", SRUN)
    heard = "echo told >> told; exit 3" if is_polite else "echo told >> told"
    script = f"trap '{heard}' TERM; touch up; while :; do sleep 0.05; done"
    effects = bench.directory / "effects"
    step = make_step("a", replace(in_image(script), workdir=str(effects)))
    bench.engine.start(step)
    wait_until((effects / "up").exists, bench.pause)
    bench.engine.stop(step.step, 30 if is_polite else 1)
    code = wait_for(bench, step.step, TaskPhase.EXITED).exit_code
    assert (effects / "told").read_text() == "told\n"
    assert code == 3 if is_polite else code != 0
    wait_until(lambda: not running(str(effects)))


def test_apptainer_is_told_what_is_ours_and_no_value_of_a_variable(bench):
    have(bench, "apptainer", APPTAINER)
    env = {"PATH": "/opt/of/the/image:/usr/bin:/bin", "TOKEN": "s3cr3t"}
    step = make_step("a", in_image('echo "$PATH|$TOKEN"', env=env))
    bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 0
    log = bench.engine.logs(step.step, 0, 1000).data.decode()
    assert log == f"{env['PATH']}|s3cr3t\n"
    told = bench.told()
    assert "docker://registry.example/mill/grind:2" in told
    assert not any("s3cr3t" in word for word in told)


def test_a_pool_may_say_what_its_nodes_have(bench):
    settings = replace(bench.engine._settings, images="apptainer")
    bench.engine = SlurmEngine(settings, bench.engine._cluster._client, clock=RealClock())
    step = make_step("a", in_image("echo not reached"))
    bench.engine.start(step)
    assert wait_for(bench, step.step, TaskPhase.EXITED).exit_code == 127
    log = bench.engine.logs(step.step, 0, 1000).data.decode()
    assert log == "moulin: cannot run apptainer: No such file or directory\n"


def running(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with suppress(OSError):
                if mark in str((entry / "cwd").readlink()):
                    found.append(int(entry.name))
    return found
