"""Commands about work: run it, list it, read its output, ask why it waits, stop it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperCommand

from moulin.cli.screen import answer, duration, energy, euros, moment, say, table, write, write_json
from moulin.cli.session import Data, IsJson, Project, Word, connect, find_workload
from moulin.domain.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moulin.domain.control import Trial
    from moulin.domain.reasons import Reason
    from moulin.domain.views import WorkloadView
    from moulin.domain.workload import WorkloadSpec
    from moulin.sdk import Moulin

app = typer.Typer(rich_markup_mode=None)
COMMAND: Final = "moulin.command"
DETACHED_STATUS: Final = 130
NEWS_PERIOD_S: Final = 2.0


class TakesCommand(TyperCommand):
    """A command whose words after `--` are a program with its arguments, untouched."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the words after `--` aside and read the rest as usual."""
        if "--" in args:
            index = args.index("--")
            ctx.meta[COMMAND] = tuple(args[index + 1 :])
            args = args[:index]
        return super().parse_args(ctx, args)


@app.command(cls=TakesCommand)
def run(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE | -- COMMAND...]", help="Job file (.yaml), or a command."),
    ] = None,
    *,
    is_following: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the output and exit with the job's status.")
    ] = False,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say where, when and for how much; start nothing.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the job.")] = None,
    cpus: Annotated[str | None, typer.Option("--cpus", help="CPUs of each task: 2 or 0.5.")] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Memory of each task: 512MB, 64GB.")
    ] = None,
    accelerators: Annotated[
        str | None, typer.Option("--accelerators", help="Accelerators of each task: B300:8, or 2.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", help="Nodes that start together, one task each.")
    ] = None,
    country: Annotated[
        list[str] | None, typer.Option("--country", help="Only in this country; may be repeated.")
    ] = None,
    zone: Annotated[
        list[str] | None, typer.Option("--zone", help="Only in this zone; may be repeated.")
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", help="End it after this long: 30m, 6h.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", help="0 to 100, higher first (50).")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="A label.")
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option("--workdir", help="Folder to run in; without it, an empty one of its own."),
    ] = None,
    retry: Annotated[
        int | None, typer.Option("--retry", help="How often to try, the first time included.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", help="Give up when not done by then: 6h.")
    ] = None,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Run a command, or what a job file asks for.

    Flags change what the file says. The job goes on when this command ends; --follow stays with
    it, and Ctrl-C then only stops following.

    \b
    Examples:
      moulin run -- python3 -c 'print(2 + 2)'
      moulin run --follow --cpus 2 --time-limit 10m -- make test
      moulin run job.yaml --dry-run
    """
    from moulin.cli.asked import Flags, wanted

    spec = wanted(
        words or (),
        context.meta.get(COMMAND),
        Flags(
            name=name,
            cpus=cpus,
            memory=memory,
            accelerators=accelerators,
            nodes=nodes,
            countries=country or (),
            zones=zone or (),
            time_limit=time_limit,
            priority=priority,
            env=env or (),
            labels=label or (),
            workdir=workdir,
            retry=retry,
            deadline=deadline,
        ),
    )
    with connect(data, project) as client:
        if is_dry_run:
            _try_out(client, spec, is_json=is_json)
        elif is_following:
            _submit_and_follow(client, spec, is_json=is_json)
        else:
            view = client.workloads.submit(spec)
            answer(view, is_json=is_json, show=lambda: write(view.id))
            if not is_json:
                say(f"{view.name} is {view.state}; `moulin logs -f {view.id}` shows its output")


@app.command()
def jobs(
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
    """List workloads, newest first."""
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
                    _ran(view),
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
    rank: Annotated[int, typer.Option("--rank", min=0, help="Task of a gang.")] = 0,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Print what a task wrote, up to now or, with -f, as it comes."""
    with connect(data, project) as client:
        view = find_workload(client, word)
        pieces = []
        if is_following:
            try:
                for piece in client.workloads.follow(view.id, unit=unit, rank=rank):
                    pieces.append(piece) if is_json else _write_bytes(piece)
            except KeyboardInterrupt:
                say(f"\nno longer following; {view.name} goes on")
                raise typer.Exit(DETACHED_STATUS) from None
        else:
            for piece in _so_far(client, view.id, unit, rank):
                pieces.append(piece) if is_json else _write_bytes(piece)
    if is_json:
        text = b"".join(pieces).decode(errors="replace")
        write_json({"id": view.id, "unit": unit, "rank": rank, "text": text})


@app.command()
def why(word: Word, data: Data = None, project: Project = "", is_json: IsJson = False) -> None:
    """Say why a workload waits, was refused or ended, with the numbers."""
    from moulin.domain.reasons import sentence

    with connect(data, project) as client:
        found = client.workloads.why(find_workload(client, word).id)
    view = found.workload
    reasons = found.reasons or view.reasons

    def show() -> None:
        write(f"{view.id} {view.name} is {view.state}")
        for line in _sentences(reasons) or [_otherwise(view)]:
            write(f"  {line}")

    told = {
        "id": view.id,
        "name": view.name,
        "state": view.state,
        "reasons": [
            {"code": r.code.value, "parameters": dict(r.parameters), "sentence": sentence(r)}
            for r in reasons
        ],
    }
    answer(told, is_json=is_json, show=show)


@app.command()
def stop(
    word: Word,
    is_waiting: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return when it has ended, or at once.")
    ] = True,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Stop a workload: its program is asked to end, and made to after a grace."""
    from moulin.domain.workload import FINAL_WORKLOAD_STATES

    with connect(data, project) as client:
        view = find_workload(client, word)
        had_ended = view.state in FINAL_WORKLOAD_STATES
        view = client.workloads.stop(view.id)
        if is_waiting and not had_ended:
            view = client.workloads.wait(view.id, timeout_s=view.spec.stop_grace_s + 30.0)
    had = "had already ended: " if had_ended else ""
    answer(view, is_json=is_json, show=lambda: write(f"{view.id} {view.name} {had}{view.state}"))


def _try_out(client: "Moulin", spec: "WorkloadSpec", *, is_json: bool) -> None:
    trial = client.workloads.try_out(spec)
    answer(trial, is_json=is_json, show=lambda: _show_trial(spec, trial))
    if not trial.is_possible:
        raise typer.Exit(1)


def _show_trial(spec: "WorkloadSpec", trial: "Trial") -> None:
    if not trial.is_possible:
        write(f"{spec.name} can never run here:")
    elif trial.nodes:
        write(f"{spec.name} would start now on {', '.join(trial.nodes)}")
        write(f"  zone         {', '.join(trial.zones)}")
    else:
        write(f"{spec.name} would wait:")
    for line in _sentences(trial.reasons):
        write(f"  {line}")
    if trial.is_possible:
        limit = duration(trial.time_limit_s * 1_000_000_000) if trial.time_limit_s else "none"
        write(f"  time limit   {limit}")
        write(f"  price        at most {euros(trial.reserved_neur)}")
        if trial.nodes:
            write(f"  energy       at most about {energy(trial.energy_mj)} (an estimate)")


def _submit_and_follow(client: "Moulin", spec: "WorkloadSpec", *, is_json: bool) -> None:
    view = client.workloads.submit(spec)
    say(f"{view.id} {view.name} is {view.state}")
    try:
        _say_why_it_waits(client, view.id)
        for piece in client.workloads.follow(view.id):
            _write_bytes(piece, is_error=is_json)
        view = client.workloads.wait(view.id)
    except KeyboardInterrupt:
        say(f"\nno longer following; {view.name} goes on. `moulin logs -f {view.id}` follows it")
        say(f"again, `moulin stop {view.id}` stops it.")
        raise typer.Exit(DETACHED_STATUS) from None
    for line in _sentences(view.reasons):
        say(line)
    say(f"{view.name} {view.state} after {_ran(view)}")
    if is_json:
        write_json(view)
    raise typer.Exit(_exit_status(view))


def _say_why_it_waits(client: "Moulin", id: str) -> None:
    """Say once why a job waits, when it still does after a moment."""
    import time

    deadline_s = time.monotonic() + NEWS_PERIOD_S
    while time.monotonic() < deadline_s:
        if client.workloads.get(id).state != "admitted":
            return
        time.sleep(0.05)
    for line in _sentences(client.workloads.why(id).reasons):
        say(f"waiting: {line}")


def _exit_status(view: "WorkloadView") -> int:
    """Return the job's own status: that of its first task that failed, else 0 or 1."""
    codes = [task.exit_code for unit in view.units for task in unit.tasks]
    failed = [code for code in codes if code]
    if view.state == "succeeded":
        return 0
    return failed[0] if failed and 0 < failed[0] < 256 else 1


def _so_far(client: "Moulin", id: str, unit: int, rank: int) -> "list[bytes]":
    pieces: list[bytes] = []
    cursor = 0
    while True:
        chunk = client.workloads.logs(id, unit=unit, rank=rank, cursor=cursor)
        if not chunk.data:
            return pieces
        pieces.append(chunk.data)
        cursor = chunk.next_cursor


def _write_bytes(piece: bytes, *, is_error: bool = False) -> None:
    stream = sys.stderr if is_error else sys.stdout
    stream.buffer.write(piece)
    stream.flush()


def _sentences(reasons: "Sequence[Reason]") -> list[str]:
    from moulin.domain.reasons import sentence

    return [sentence(reason) for reason in reasons]


def _otherwise(view: "WorkloadView") -> str:
    nodes = [task.node for unit in view.units for task in unit.tasks]
    return f"nothing holds it back; on {', '.join(nodes)}" if nodes else "nothing holds it back"


def _ran(view: "WorkloadView") -> str:
    if not view.started_at_ns:
        return "-"
    import time

    return duration((view.ended_at_ns or time.time_ns()) - view.started_at_ns)


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
