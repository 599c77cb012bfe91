"""Steps 3 and 4: a real batch job, and the death of the control plane in the middle of it.

The job is an ordinary program that knows nothing of the demo; what it did is read from the files it
wrote, and who it is from /proc.
"""

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from moulin.app.datadir import write_private
from moulin.app.demo import documents
from moulin.app.demo.crash import control_of, kill
from moulin.app.demo.model import COUNTRY
from moulin.app.demo.stage import NotAsPromised, Stage, issue_key, promise
from moulin.app.processes import ProcessMark, boot_id, is_alive
from moulin.domain.errors import MoulinError
from moulin.domain.reasons import sentence
from moulin.domain.views import WorkloadView
from moulin.domain.workload import (
    FINAL_WORKLOAD_STATES,
    Resources,
    TaskTemplate,
    Where,
    WorkloadKind,
    WorkloadSpec,
    WorkloadState,
)

JOB_NAME: Final = "press-briefs"
JOB_CPU_MILLI: Final = 200
JOB_MEMORY_BYTES: Final = 300 * 10**6
TIME_LIMIT_S: Final = 900
FIRST_BRIEF_S: Final = 300.0
RETURN_S: Final = 60.0


def start_job(stage: Stage) -> dict[str, Any]:
    """Submit the job and show its first brief as soon as it is there.

    Raises `NotAsPromised` when the job ends early, `DeadlineExceeded` without a first brief.
    """
    screen = stage.screen
    selection = documents.select(stage.wanted.docs)
    documents.write(selection, stage.workplace / "documents")
    _describe(stage, selection)
    secret = issue_key(stage, stage.as_tenant, JOB_NAME)
    write_private(_key_file(stage), secret.encode())
    screen.quiet(
        f"Its key may call this model and nothing else. The job is told the key's file "
        f"({_key_file(stage)}, for this user alone), not the key."
    )
    view = stage.as_tenant.workloads.submit(_spec(stage))
    stage.job = view.id
    screen.good(f"job {view.id} accepted; the answer came after it was durable")
    began_s = time.monotonic()
    with screen.progress("the job is reading the first document") as meter:
        while not (briefs := _lines(_output(stage))):
            _check_under_way(stage, time.monotonic() - began_s)
            meter.update("the job is reading the first document")
            time.sleep(0.1)
    _show_brief(stage, briefs[0])
    return {
        "documents": len(selection.documents),
        "documents_found": selection.found,
        "tokens_max": documents.TOKENS_MAX,
        "job": view.id,
    }


def kill_control_plane(stage: Stage) -> dict[str, Any]:
    """Kill the control process while the job runs, and judge from outside what became of the job.

    Raises `NotAsPromised` unless the same process did all of the work, once.
    """
    screen = stage.screen
    before = stage.as_tenant.workloads.get(stage.job)
    control, job = control_of(stage), _job_process(stage)
    done_before = len(_lines(_output(stage)))
    is_running = is_alive(job)
    screen.say(
        f"The job runs as process {job.pid}; {done_before} of {len(_documents(stage))} briefs are "
        f"written. Now: kill -9 {control.pid}, the control plane."
    )
    successor = kill(stage, control)
    after = stage.as_tenant.workloads.get(stage.job)
    still = "still runs" if is_alive(job) else "has ended by itself meanwhile"
    screen.good(
        f"the supervisor brought it back after {successor.back_s:.1f} s as process "
        f"{successor.process.pid}, leading in epoch {successor.epoch}"
    )
    screen.good(f"the job {still}: same process {job.pid}, by its start time in /proc")
    promise(
        after.units[0].attempt == before.units[0].attempt and after.units[0].generation == 1,
        "the job was started again instead of adopted",
    )
    screen.good("it was adopted, not started again: the same attempt, generation 1")
    view = _finish(stage)
    _check_effects(stage, job)
    screen.good(
        f"job {view.state}; by its own notes one process wrote every brief, each exactly once"
    )
    for brief in stage.briefs[done_before:]:
        _show_brief(stage, brief)
    return {
        "control_pid_before": control.pid,
        "control_pid_after": successor.process.pid,
        "back_s": round(successor.back_s, 2),
        "job_pid": job.pid,
        "generation": after.units[0].generation,
        "was_running": is_running,
        "briefs": len(stage.briefs),
    }


def _describe(stage: Stage, selection: documents.Selection) -> None:
    many = len(selection.documents)
    of = f" (of {selection.found} found)" if selection.found > many else ""
    whose = f"from {stage.wanted.docs}" if stage.wanted.docs else "in French, German and Chinese"
    stage.screen.say(
        f"A newspaper's batch job turns {many} documents{of} {whose} into press briefs: JSON by a "
        "schema, through the endpoint, with the stock openai client."
    )
    cut = sum(document.is_cut for document in selection.documents)
    stage.screen.quiet(
        f"Each is cut to about {documents.TOKENS_MAX} tokens, estimated by its letters; "
        f"{cut} of {many} had to be. A small model writes them: read them as such."
    )


def _spec(stage: Stage) -> WorkloadSpec:
    return WorkloadSpec(
        kind=WorkloadKind.JOB,
        name=JOB_NAME,
        resources=Resources(cpu_milli=JOB_CPU_MILLI, memory_bytes=JOB_MEMORY_BYTES),
        task=TaskTemplate(
            command=(
                *(sys.executable, "-m", "moulin.runtimes.briefs"),
                *("--documents", str(stage.workplace / "documents")),
                *("--output", str(_output(stage))),
                *("--base-url", stage.gateway_url),
                *("--model", stage.wanted.model),
                *("--key-file", str(_key_file(stage))),
            )
        ),
        where=Where(countries=(COUNTRY,)),
        time_limit_s=TIME_LIMIT_S,
    )


def _finish(stage: Stage) -> WorkloadView:
    began_s = time.monotonic()
    total = len(_documents(stage))
    with stage.screen.progress("the job goes on") as meter:
        while True:
            view = stage.as_tenant.workloads.get(stage.job)
            if view.state in FINAL_WORKLOAD_STATES:
                break
            promise(time.monotonic() - began_s < TIME_LIMIT_S, "the job does not end")
            meter.update(f"the job goes on: {len(_lines(_output(stage)))} of {total} briefs")
            time.sleep(0.1)
    if view.state != WorkloadState.SUCCEEDED:
        raise NotAsPromised(f"the job {view.state}: {_why(stage, view)}")
    stage.briefs = _lines(_output(stage))
    promise(
        [line["document"] for line in stage.briefs] == _documents(stage),
        "a document has no brief, or more than one",
    )
    return view


def _check_effects(stage: Stage, job: ProcessMark) -> None:
    notes = _lines(_effects(stage))
    who = {(note["pid"], note["started_ticks"], note["generation"]) for note in notes}
    promise(
        who == {(job.pid, job.started_ticks, "1")},
        f"more than one process worked on the job, by its own notes: {sorted(who)}",
    )
    briefed = [note["document"] for note in notes if note["event"] == "briefed"]
    promise(briefed == _documents(stage), "a document was briefed twice or not at all")


def _check_under_way(stage: Stage, waited_s: float) -> None:
    view = stage.as_tenant.workloads.get(stage.job)
    if view.state in FINAL_WORKLOAD_STATES:
        raise NotAsPromised(f"the job {view.state} before its first brief: {_why(stage, view)}")
    promise(
        waited_s < FIRST_BRIEF_S, f"no brief after {FIRST_BRIEF_S:g} s; the job is {view.state}"
    )


def _why(stage: Stage, view: WorkloadView) -> str:
    """Return the reasons of a job's end with the last lines of its log."""
    log = b""
    with contextlib.suppress(MoulinError):
        log = stage.as_tenant.workloads.logs(view.id).data
    lines = log.decode(errors="replace").strip().splitlines()
    return "; ".join([*map(sentence, view.reasons), *lines[-3:]])


def _job_process(stage: Stage) -> ProcessMark:
    first = _lines(_effects(stage))[0]
    return ProcessMark(int(first["pid"]), int(first["started_ticks"]), boot_id())


def _show_brief(stage: Stage, line: Mapping[str, Any]) -> None:
    brief, origin = line["brief"], line["provenance"]
    where_from = (
        f"{origin['time']}, {origin['provider']}, {origin['model']}, zone {origin['zone']}, "
        f"{origin['tokens_input']} + {origin['tokens_output']} tokens, {origin['receipt']}"
    )
    rows = [
        ("title", brief["title"]),
        ("summary", brief["summary"]),
        ("key players", "; ".join(f"{p['name']} ({p['role']})" for p in brief["key_players"])),
        *(("impact", f"{i['sector']}: {i['level']}. {i['why']}") for i in brief["impact"]),
        ("tags", ", ".join(brief["tags"])),
        ("origin", where_from),
    ]
    stage.screen.gap()
    stage.screen.say(f"{line['document']}, in {brief['language']}", style="bold")
    stage.screen.table(("", ""), rows)


def _documents(stage: Stage) -> list[str]:
    return sorted(path.name for path in (stage.workplace / "documents").iterdir())


def _key_file(stage: Stage) -> Path:
    return stage.workplace / f"{JOB_NAME}.key"


def _output(stage: Stage) -> Path:
    return stage.workplace / "briefs.jsonl"


def _effects(stage: Stage) -> Path:
    return stage.workplace / "briefs.jsonl.effects.jsonl"


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
