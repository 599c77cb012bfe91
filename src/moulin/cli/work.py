"""Commands about work that was submitted: list it, read its output, ask why it waits, stop it."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.batch import present, show_view, timeline, times
from moulin.cli.screen import (
    DETACHED_STATUS,
    answer,
    ran,
    say,
    sentences,
    table,
    write,
    write_bytes,
    write_json,
)
from moulin.cli.session import Data, IsJson, Project, Word, connect, find_workload
from moulin.domain.errors import InvalidRequest
from moulin.domain.words import euros, moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moulin.domain.control import StopWanted
    from moulin.domain.views import WorkloadView
    from moulin.sdk import Moulin

app = typer.Typer(rich_markup_mode=None)


@app.command()
def jobs(
    word: Annotated[
        str, typer.Argument(metavar="[ID]", help="Only this one, with all there is to say of it.")
    ] = "",
    *,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", help="Only in this state: running, failed, …; may be repeated."),
    ] = None,
    kind: Annotated[str, typer.Option("--kind", help="Only job, endpoint, lease or session.")] = "",
    is_live: Annotated[bool, typer.Option("--live", help="Only what has not ended.")] = False,
    label: Annotated[
        str, typer.Option("--label", metavar="NAME=VALUE", help="Only with this label.")
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many.")] = 50,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """List workloads, newest first; with an id, show that one as `moulin show` does."""
    if word:
        with connect(data, project) as client:
            one = present(client, word)
        answer(one, is_json=is_json, show=lambda: show_view(one))
        return
    states = _states(state or (), is_live=is_live)
    with connect(data, project) as client:
        page = client.workloads.page(
            project=project,
            kind=_kind(kind),
            states=states,
            label=_label(label),
            limit=limit,
        )

    def show() -> None:
        table(
            ("id", "name", "kind", "state", "submitted", "ran>", "spent>"),
            (
                (
                    *(view.id, view.name, view.kind, view.state, moment(view.submitted_at_ns)),
                    ran(view),
                    euros(view.spent_neur),
                )
                for view in page.items
            ),
            empty="no workloads",
        )
        if page.next:
            say(f"there are more than {limit}; --limit shows up to 1000")

    answer(page, is_json=is_json, show=show)


@app.command()
def logs(
    word: Word,
    *,
    is_following: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
    unit: Annotated[int, typer.Option("--unit", min=0, help="Replica of an endpoint.")] = 0,
    index: Annotated[
        int | None, typer.Option("--index", min=0, help="Element of an array.")
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Task of a gang.")] = 0,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Print what a task wrote, up to now or, with -f, as it comes.

    Output is kept for the job's retention after its end: 7 days, or what `run --retention` said.
    """
    with connect(data, project) as client:
        view = find_workload(client, word)
        unit = unit if index is None else _unit_of(view, index)
        pieces = []
        if is_following:
            try:
                for piece in client.workloads.follow(view.id, unit=unit, rank=rank):
                    pieces.append(piece) if is_json else write_bytes(piece)
            except KeyboardInterrupt:
                say(f"\nno longer following; {view.name} goes on")
                raise typer.Exit(DETACHED_STATUS) from None
        else:
            for piece in _so_far(client, view.id, unit, rank):
                pieces.append(piece) if is_json else write_bytes(piece)
    if is_json:
        text = b"".join(pieces).decode(errors="replace")
        write_json({"id": view.id, "unit": unit, "rank": rank, "text": text})


@app.command()
def why(word: Word, data: Data = None, project: Project = "", is_json: IsJson = False) -> None:
    """Say why a workload waits, was refused or ended, with the numbers."""
    from moulin.domain.reasons import hint_of, sentence

    with connect(data, project) as client:
        found = client.workloads.why(find_workload(client, word).id)
    view = found.workload
    reasons = found.reasons or view.reasons

    def show() -> None:
        write(f"{view.id} {view.name} is {view.state}")
        for line in sentences(reasons) or [_otherwise(view)]:
            write(f"  {line}")
        hint = hint_of(reasons[0]) if reasons else ""
        if hint:
            write(f"  hint: {hint}")
        write(f"  {timeline(view)}")

    told = {
        "id": view.id,
        "name": view.name,
        "state": view.state,
        "timeline": {name: moment(at_ns) if at_ns else None for name, at_ns in times(view)},
        "reasons": [
            {"code": r.code.value, "parameters": dict(r.parameters), "sentence": sentence(r)}
            for r in reasons
        ],
    }
    answer(told, is_json=is_json, show=show)


@app.command()
def stop(
    word: Annotated[
        str, typer.Argument(metavar="[ID]", help="Its id, the beginning of it, or its name.")
    ] = "",
    *,
    elements: Annotated[
        str, typer.Option("--elements", help="Only these of an array: 3,5-9.")
    ] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="All with this label.")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", help="All in this state: queued, running, …; may be repeated."),
    ] = None,
    kind: Annotated[str, typer.Option("--kind", help="All of this kind.")] = "",
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    is_waiting: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return when it has ended, or at once.")
    ] = True,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Stop a workload, part of an array, or all that have a label, state or kind.

    Its program is asked to end, and made to after a grace. Without an id they are counted first.

    \b
    Examples:
      moulin stop train
      moulin stop sweep --elements 50-99
      moulin stop --label team=x --state queued --yes
    """
    if bool(word) is bool(label or state or kind):
        raise InvalidRequest(
            "stop: name one workload, or say which by --label, --state or --kind",
            hint="`moulin stop ID`, or `moulin stop --label team=x --state queued`",
        )
    with connect(data, project) as client:
        if not word:
            wanted = _filter(label or (), state or (), kind)
            _stop_many(client, wanted, is_sure=is_sure, is_json=is_json)
        elif elements:
            _stop_elements(client, word, elements, is_json=is_json)
        else:
            _stop_one(client, word, is_waiting=is_waiting, is_json=is_json)


def _stop_one(client: "Moulin", word: str, *, is_waiting: bool, is_json: bool) -> None:
    from moulin.domain.workload import FINAL_WORKLOAD_STATES

    view = find_workload(client, word)
    had_ended = view.state in FINAL_WORKLOAD_STATES
    view = client.workloads.stop(view.id)
    if is_waiting and not had_ended:
        view = client.workloads.wait(view.id, timeout_s=view.spec.stop_grace_s + 30.0)
    had = "had already ended: " if had_ended else ""
    answer(view, is_json=is_json, show=lambda: write(f"{view.id} {view.name} {had}{view.state}"))


def _stop_elements(client: "Moulin", word: str, elements: str, *, is_json: bool) -> None:
    from moulin.domain.jobfile import parse_array

    found = parse_array(elements)
    if found is None or found.at_most:
        raise InvalidRequest(f"read --elements {elements!r}", hint="write 3,5-9")
    indices = [found.index_of(unit) for unit in range(found.size)]
    view = client.workloads.stop_elements(find_workload(client, word).id, indices)
    shown = ", ".join(f"{count} {state}" for state, count in view.counts.items())
    answer(view, is_json=is_json, show=lambda: write(f"{view.id} {view.name}: {shown}"))


def _stop_many(client: "Moulin", wanted: "StopWanted", *, is_sure: bool, is_json: bool) -> None:
    from dataclasses import replace

    meant = client.workloads.stop_many(replace(wanted, is_dry_run=True))
    count = len(meant.workloads)
    if count and not is_sure:
        if not sys.stdin.isatty():
            raise InvalidRequest(
                f"stop {count} workload(s): nobody is here to say yes", hint="add --yes"
            )
        typer.confirm(f"Stop {count} workload(s)?", abort=True, err=True)
    stopped = client.workloads.stop_many(wanted) if count else meant

    def show() -> None:
        for each in stopped.workloads:
            write(each)
        say(f"asked {len(stopped.workloads)} workload(s) to end")

    answer(stopped, is_json=is_json, show=show)


def _filter(labels: "Sequence[str]", states: "Sequence[str]", kind: str) -> "StopWanted":
    from moulin.domain.control import StopWanted
    from moulin.domain.workload import WorkloadKind, WorkloadState

    # What waits is admitted; people who come from other schedulers say that it is queued.
    words = ["admitted" if word in ("queued", "waiting", "pending") else word for word in states]
    pairs = [pair for pair in map(_label, labels) if pair is not None]
    return StopWanted(
        states=tuple(WorkloadState(word) for word in _states(words, is_live=False)),
        kind=WorkloadKind(_kind(kind)) if kind else None,
        labels=dict(pairs),
    )


def _so_far(client: "Moulin", id: str, unit: int, rank: int) -> "list[bytes]":
    pieces: list[bytes] = []
    cursor = 0
    while True:
        chunk = client.workloads.logs(id, unit=unit, rank=rank, cursor=cursor)
        if not chunk.data:
            return pieces
        pieces.append(chunk.data)
        cursor = chunk.next_cursor


def _unit_of(view: "WorkloadView", index: int) -> int:
    array = view.spec.array
    units = array.units_of((index,)) if array is not None else ()
    if not units:
        raise InvalidRequest(f"read the log of element {index} of {view.id}: it has none")
    return units[0]


def _otherwise(view: "WorkloadView") -> str:
    tasks = [task for unit in view.units for task in unit.tasks]
    nodes = ", ".join(task.host or task.node for task in tasks)
    jobs = ", ".join(dict.fromkeys(task.job for task in tasks if task.job))
    where = f"; on {nodes}" if nodes else ""
    return f"nothing holds it back{where}" + (f" as job {jobs}" if jobs else "")


def _states(words: "Sequence[str]", *, is_live: bool) -> tuple[str, ...]:
    from moulin.domain.section import nearest
    from moulin.domain.workload import FINAL_WORKLOAD_STATES, WorkloadState

    known = [state.value for state in WorkloadState]
    for word in words:
        if word not in known:
            raise InvalidRequest(f"list jobs that are {word!r}", hint=nearest(word, known))
    if is_live and not words:
        return tuple(s.value for s in WorkloadState if s not in FINAL_WORKLOAD_STATES)
    return tuple(words)


def _kind(word: str) -> str:
    from moulin.domain.section import nearest
    from moulin.domain.workload import WorkloadKind

    known = [kind.value for kind in WorkloadKind]
    if word and word not in known:
        raise InvalidRequest(f"list workloads of kind {word!r}", hint=nearest(word, known))
    return word


def _label(word: str) -> tuple[str, str] | None:
    name, equals, value = word.partition("=")
    if word and not equals:
        raise InvalidRequest(f"read --label {word!r}: it has no =", hint="write NAME=VALUE")
    return (name, value) if word else None
