"""Commands about a job's place in the queue and its course: hold, release, priority, show."""

from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.screen import answer, sentences, table, write
from moulin.cli.session import Data, IsJson, Project, Word, connect, find_workload
from moulin.domain.words import duration, memory, moment

if TYPE_CHECKING:
    from moulin.domain.views import AttemptView, TaskView, UnitView, WorkloadView
    from moulin.sdk import Moulin

app = typer.Typer(rich_markup_mode=None)
UNKNOWN = "?"


@app.command()
def hold(word: Word, data: Data = None, project: Project = "", is_json: IsJson = False) -> None:
    """Let nothing more of a workload start until it is released; what runs goes on."""
    with connect(data, project) as client:
        view = client.workloads.hold(find_workload(client, word).id)
    answer(view, is_json=is_json, show=lambda: write(f"{view.id} {view.name} is held"))


@app.command()
def release(word: Word, data: Data = None, project: Project = "", is_json: IsJson = False) -> None:
    """Let a held workload go on."""
    with connect(data, project) as client:
        view = client.workloads.release(find_workload(client, word).id)
    answer(view, is_json=is_json, show=lambda: write(f"{view.id} {view.name} is released"))


@app.command()
def priority(
    word: Word,
    value: Annotated[int, typer.Argument(min=0, max=100, help="0 to 100, higher first.")],
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Give a workload another priority; what runs is left alone."""
    with connect(data, project) as client:
        view = client.workloads.set_priority(find_workload(client, word).id, value)
    answer(
        view,
        is_json=is_json,
        show=lambda: write(f"{view.id} {view.name} has priority {view.spec.priority}"),
    )


@app.command()
def show(word: Word, data: Data = None, project: Project = "", is_json: IsJson = False) -> None:
    """Show one workload: its course, and what each of its tasks and attempts used of what it held."""
    with connect(data, project) as client:
        view = present(client, word)
    answer(view, is_json=is_json, show=lambda: show_view(view))


def present(client: "Moulin", word: str) -> "WorkloadView":
    """Return a workload as it is now: of one that runs, with what was last read of it."""
    view = find_workload(client, word)
    return view if view.ended_at_ns else client.workloads.why(view.id).workload


def times(view: "WorkloadView") -> list[tuple[str, int]]:
    """Return the moments of a workload's course, in ns UTC, 0 for what has not come or is not known."""
    return [
        ("submit", view.submitted_at_ns),
        ("eligible", view.eligible_at_ns),
        ("start", view.started_at_ns),
        ("end", view.ended_at_ns),
    ]


def timeline(view: "WorkloadView") -> str:
    """Return a workload's course in one line; what has not come or could not be read says so."""
    parts = []
    last_ns = 0
    for name, at_ns in times(view):
        since = f" (+{duration(at_ns - last_ns)})" if at_ns > last_ns > 0 else ""
        parts.append(f"{name} {moment(at_ns)}{since}" if at_ns else f"{name} {_absent(view, name)}")
        last_ns = max(last_ns, at_ns)
    return " -> ".join(parts)


def _absent(view: "WorkloadView", name: str) -> str:
    if view.ended_at_ns and name == "start":
        return "never seen"
    return "never" if view.ended_at_ns else "not yet"


def show_view(view: "WorkloadView") -> None:
    """Print a workload for people."""
    held = ", held" if view.is_held else ""
    write(f"{view.id} {view.name} ({view.kind}) is {view.state}{held}")
    write(f"  {timeline(view)}")
    for line in sentences(view.reasons):
        write(f"  {line}")
    if view.counts:
        write("  " + ", ".join(f"{count} {state}" for state, count in view.counts.items()))
    tasks = [(unit, task) for unit in view.units for task in unit.tasks]
    is_queued = any(task.job for _, task in tasks)
    table(
        (
            *("unit", "attempt>", "restarts>", "state", "node", *(("job",) if is_queued else ())),
            *("exit>", "cpu used>", "most memory>"),
        ),
        (_cells(unit, task, has_job=is_queued) for unit, task in tasks),
        empty="nothing of it was placed yet",
    )
    tried = [(unit, attempt) for unit in view.units for attempt in unit.attempts]
    if tried:
        write("")
        table(
            ("unit", "attempt>", "state", "why", "ran>", "cpu>", "memory>", "accelerators>"),
            (_attempt_cells(unit, attempt) for unit, attempt in tried),
        )
    unread = sorted({word for _, attempt in tried for word in attempt.unread})
    if unread:
        write(f"nobody could read: {', '.join(unread)}")


def _cells(unit: "UnitView", task: "TaskView", *, has_job: bool) -> tuple[str, ...]:
    waits = f" (waits: {task.waits_for})" if task.waits_for else ""
    named = str(unit.unit if unit.index is None else unit.index)
    return (
        f"{named}.{task.rank}",
        str(unit.generation),
        str(unit.restarts),
        unit.state,
        task.host or task.node,
        *((f"{task.job or UNKNOWN}{waits}",) if has_job else ()),
        "-" if task.exit_code is None else str(task.exit_code),
        efficiency(task),
        memory(task.memory_bytes_max) if task.memory_bytes_max else UNKNOWN,
    )


def _attempt_cells(unit: "UnitView", attempt: "AttemptView") -> tuple[str, ...]:
    until_ns = attempt.ended_at_ns or attempt.read_at_ns
    ran_ns = until_ns - attempt.started_at_ns
    return (
        str(unit.unit if unit.index is None else unit.index),
        str(attempt.generation),
        attempt.state,
        attempt.stop_cause.replace("_", " ") or "-",
        duration(ran_ns) if attempt.started_at_ns and ran_ns > 0 else UNKNOWN,
        _share(attempt.cpu_used_ns, attempt.cpu_held_ns, is_known="cpu" not in attempt.unread),
        _of(attempt.memory_bytes_max, attempt.memory_bytes),
        UNKNOWN if attempt.accelerators else "-",
    )


def _share(used: int, held: int, *, is_known: bool) -> str:
    return f"{100 * used // held} %" if is_known and held > 0 else UNKNOWN


def _of(used: int, asked: int) -> str:
    return f"{memory(used)} of {memory(asked)}" if used and asked else UNKNOWN


def efficiency(task: "TaskView") -> str:
    """Return which share of the CPU time it held a task used; `?` before both ends are known."""
    held = (task.ended_at_ns - task.started_at_ns) * task.cpu_milli // 1000
    if not task.ended_at_ns or not task.started_at_ns or held <= 0:
        return UNKNOWN
    return f"{100 * task.cpu_ns // held} %"
