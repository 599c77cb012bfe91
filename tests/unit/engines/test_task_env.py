"""The environment of a task, as a value made of values."""

from pathlib import Path

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.ids import (
    NodeId,
    OrganisationId,
    ProjectId,
    StepId,
    WorkloadId,
    attempt_id,
    step_id,
)
from moulin.domain.plan import StartStep
from moulin.domain.workload import Resources, TaskTemplate
from moulin.engines.task.spool import step_files
from moulin.engines.task.task_env import clean_environment, task_environment

SPOOL = Path("/spool")


def environment(*, rank=1, env=None, added=None, devices=()):
    attempt = attempt_id("job_A", 0, 3)
    step = StartStep(
        step=step_id(attempt, rank),
        attempt=attempt,
        workload=WorkloadId("job_A"),
        organisation=OrganisationId("o"),
        project=ProjectId("p"),
        unit=0,
        generation=3,
        rank=rank,
        nodes=(NodeId("n0"), NodeId("n1")),
        devices=devices,
        resources=Resources(accelerators=len(devices)),
        task=TaskTemplate(command=("true",), env=env or {}),
        env=added or {},
    )
    return task_environment(
        step,
        step_files(SPOOL, step.step),
        base={"PATH": "/bin"},
        addresses=("10.0.0.1", "10.0.0.2"),
        port=21234,
        devices=devices,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASTER_ADDR", "10.0.0.1"),
        ("MASTER_PORT", "21234"),
        ("RANK", "1"),
        ("NODE_RANK", "1"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_WORLD_SIZE", "1"),
        ("SKYPILOT_NODE_RANK", "1"),
        ("SKYPILOT_NODE_IPS", "10.0.0.1\n10.0.0.2"),
        ("SKYPILOT_NUM_GPUS_PER_NODE", "2"),
        ("DSTACK_MASTER_NODE_IP", "10.0.0.1"),
        ("DSTACK_GPUS_NUM", "4"),
        ("SLURM_PROCID", "1"),
        ("SLURM_NTASKS", "2"),
        ("SLURM_JOB_NODELIST", "n0,n1"),
        ("SLURM_RESTART_COUNT", "2"),
        ("CUDA_VISIBLE_DEVICES", "4,5"),
        ("MOULIN_STEP_ID", "job_A.u0.g3.t1"),
        ("MOULIN_WORKLOAD_ID", "job_A"),
        ("MOULIN_GENERATION", "3"),
        ("MOULIN_ATTEMPT_DIR", "/spool/job_A.u0.g3/shared"),
        ("MOULIN_READY_FILE", "/spool/job_A.u0.g3/1/ready"),
        ("PATH", "/bin"),
    ],
)
def test_a_task_gets_the_names_scripts_know(name, value):
    assert environment(devices=(4, 5))[name] == value


def test_no_device_means_that_none_is_visible():
    assert environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_the_more_specific_wins_but_never_over_what_fences_a_step():
    env = environment(
        env={"PATH": "/task", "WORLD_SIZE": "9", "MOULIN_STEP_ID": "forged", "A": "task"},
        added={"A": "control plane"},
    )
    assert (env["PATH"], env["WORLD_SIZE"], env["A"]) == ("/task", "9", "control plane")
    assert env["MOULIN_STEP_ID"] == "job_A.u0.g3.t1"


def test_only_named_variables_are_passed_on():
    kept = clean_environment({"PATH": "/x", "USER": "ada", "AWS_SECRET": "s", "PYTHONPATH": "/y"})
    assert kept == {"PATH": "/x", "USER": "ada", "HOME": "/", "LANG": "C.UTF-8"}


@pytest.mark.parametrize("step", ["", "a", "a.t", "../../etc.t0", "a/b.t0", ".hidden.t0", "a.t-1"])
def test_a_step_id_cannot_name_a_place_outside_the_spool(step):
    with pytest.raises(InvalidSpec):
        step_files(SPOOL, StepId(step))


def test_steps_have_directories_of_their_own():
    files = step_files(SPOOL, StepId("job_A.u0.g1.t12"))
    assert files.directory == "/spool/job_A.u0.g1/12"
    assert files.exit == "/spool/job_A.u0.g1/12/exit"
    assert files.port == "/spool/job_A.u0.g1/port"
