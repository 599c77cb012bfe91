"""The output of a real task: there while it is kept, then clearly said to be dropped."""

from pathlib import Path

import pytest

from moulin.app.control import SETUP
from moulin.app.logs import no_log
from moulin.app.wiring.factory import FactorySettings, open_factory
from moulin.controlplane import forgetting
from moulin.controlplane.commands import ApplyFactory, SubmitWorkload
from moulin.controlplane.cycle import cycle
from moulin.controlplane.plane import PlaneSettings
from moulin.domain.errors import LogsDropped
from moulin.domain.events import TasksForgotten
from moulin.domain.factory import Organisation, Pool, Project, Site, Zone
from moulin.domain.ids import ProjectId, WorkloadId
from moulin.domain.views import TaskView, WorkloadView
from moulin.domain.workload import TaskTemplate, WorkloadKind, WorkloadSpec
from moulin.engines.task.dropped import NAME
from moulin.engines.task.spool import CHECKPOINTS
from tests.conformance.engine_bench import wait_until

OBJECTS = (
    Organisation(name="lab"),
    Site(name="hill", country="FR"),
    Zone(name="east", site="hill"),
    Pool(name="floor", zone="east", engine="local", machine_class="cpu"),
    Project(name="atelier", organisation="lab"),
)
SECOND = 1_000_000_000
JOB = WorkloadSpec(
    kind=WorkloadKind.JOB,
    name="say",
    task=TaskTemplate(command=("sh", "-c", "echo hello; echo more > result")),
    retention_s=0,
)


@pytest.fixture
def factory(tmp_path: Path):
    (tmp_path / "pepper").write_bytes(b"p" * 32)
    (tmp_path / "pepper").chmod(0o600)
    settings = PlaneSettings(metering_interval_s=0.1, cycle_wait_s=0.0)
    opened = open_factory(FactorySettings(data_dir=tmp_path, models_dir=tmp_path, plane=settings))
    yield opened
    opened.store.close()


def test_a_tasks_output_is_dropped_with_its_files_when_its_time_has_come(
    factory, tmp_path, monkeypatch
):
    monkeypatch.setattr(forgetting, "WAIT_S", 0)
    call, plane = factory.services.call, factory.plane
    call(ApplyFactory(principal=SETUP, managed_by="f", objects=OBJECTS))
    cycle(plane, 0.01)
    job = WorkloadId("job_1")
    call(SubmitWorkload(principal=SETUP, project=ProjectId("atelier"), spec=JOB, id=job))

    def is_final() -> bool:
        cycle(plane, 0.01)
        return plane.books.schedule.workloads[job].is_final

    wait_until(is_final)
    assert factory.services.logs(job, 0, 0, 0, 100).data == b"hello\n"

    def is_forgotten() -> bool:
        cycle(plane, 0.01)
        return any(isinstance(e.payload, TasksForgotten) for e in factory.store.events(0))

    wait_until(is_forgotten)
    with pytest.raises(LogsDropped, match="dropped 0 s after the end of job_1") as caught:
        factory.services.logs(job, 0, 0, 0, 100)
    assert "--retention" in caught.value.hint
    assert sorted(path.name for path in (tmp_path / "spool").iterdir()) == [CHECKPOINTS, NAME]
    assert not list((tmp_path / "spool" / CHECKPOINTS).iterdir())


@pytest.mark.parametrize(
    ("phase", "ended_s", "now_s", "code"),
    [
        ("exited", 10, 70, "logs_dropped"),
        ("gone", 10, 10**6, "logs_dropped"),
        ("exited", 10, 69, "not_found"),  # too soon: somebody else removed it
        ("running", 0, 10**6, "not_found"),
        ("absent", 10, 10**6, "not_found"),  # it never ran, so nothing was dropped
        ("", 10, 10**6, "not_found"),
    ],
)
def test_only_what_was_kept_long_enough_was_dropped(phase, ended_s, now_s, code):
    view = WorkloadView(
        id="job_1",
        kind="job",
        name="say",
        organisation="lab",
        project="atelier",
        state="succeeded",
        spec=WorkloadSpec(kind=WorkloadKind.JOB, name="say", retention_s=60),
        submitted_by="ada",
        submitted_at_ns=1,
        ended_at_ns=ended_s * SECOND,
    )
    task = TaskView(rank=0, step="job_1.u0.g1.t0", node="n", zone="z", phase=phase)
    assert no_log(view, task, now_s * SECOND).code == code
