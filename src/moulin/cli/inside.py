"""Commands that go into a running task: a shell or a command there, and a port of it here."""

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moulin.cli.screen import answer, say, write, write_bytes, write_json
from moulin.cli.session import Data, IsJson, Project, Word, connect, find_workload
from moulin.cli.submit import COMMAND, TakesCommand
from moulin.domain.errors import InvalidRequest

if TYPE_CHECKING:
    from moulin.domain.views import WorkloadView
    from moulin.sdk._inside import Session

app = typer.Typer(rich_markup_mode=None)
CHUNK: Final = 65_536
IndexFlag = Annotated[int | None, typer.Option("--index", min=0, help="Element of an array.")]
UnitFlag = Annotated[int, typer.Option("--unit", min=0, help="Replica of an endpoint.")]
RankFlag = Annotated[int, typer.Option("--rank", min=0, help="Task of a gang.")]


@app.command(name="exec", cls=TakesCommand)
def execute(
    context: typer.Context,
    word: Word,
    *,
    rank: RankFlag = 0,
    unit: UnitFlag = 0,
    index: IndexFlag = None,
    is_terminal: Annotated[
        bool | None,
        typer.Option("--terminal/--no-terminal", "-t/-T", help="As a terminal, or with pipes."),
    ] = None,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Run a command inside a running task, or a shell: same user, environment, folder, CPUs, container.

    It ends with the command's own status. Who went in, when, and the command's first word are on
    record. Without --terminal it is one when both ends of this command are.

    \b
    Examples:
      moulin exec train
      moulin exec train --rank 1 -- nvidia-smi
      moulin exec train -- tar c checkpoints > checkpoints.tar
    """
    command = context.meta.get(COMMAND) or ()
    if is_json and (is_terminal or not command):
        raise InvalidRequest(
            f"exec {word} --json: a terminal is no JSON", hint="give a command after --"
        )
    both = sys.stdin.isatty() and sys.stdout.isatty() and not is_json
    terminal = _terminal() if (both if is_terminal is None else is_terminal) else ""
    with connect(data, project) as client:
        view = find_workload(client, word)
        unit = _unit_of(view, unit, index)
        command = command or () if terminal else command or ("sh",)
        with client.inside.open(
            view.id, command, terminal=terminal, size=_size(), unit=unit, rank=rank
        ) as session:
            status = _stay(session, is_terminal=bool(terminal), is_json=is_json)
    raise typer.Exit(status)


@app.command(name="port-forward")
def port_forward(
    word: Word,
    ports: Annotated[
        str, typer.Argument(metavar="PORT[:LOCAL]", help="Its port, and the one here (the same).")
    ],
    *,
    rank: RankFlag = 0,
    unit: UnitFlag = 0,
    index: IndexFlag = None,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Let connections to a port of this machine end at one of a running task, until Ctrl-C.

    Only a port that a process of the task itself listens on, in the task's own network. It listens
    on 127.0.0.1 alone; LOCAL 0 takes a free port.
    """
    port, local_port = _ports(ports)
    with connect(data, project) as client:
        view = find_workload(client, word)
        unit = _unit_of(view, unit, index)
        with client.inside.forward(
            view.id, port, local_port=local_port, unit=unit, rank=rank
        ) as made:
            address = f"127.0.0.1:{made.port}"
            facts = {"id": view.id, "port": port, "local_port": made.port, "address": address}
            answer(facts, is_json=is_json, show=lambda: write(f"{address} -> {view.name}:{port}"))
            sys.stdout.flush()
            try:
                made.wait()
            except KeyboardInterrupt:
                say("\nno longer forwarding")


def _stay(session: "Session", *, is_terminal: bool, is_json: bool) -> int:
    """Pass on what is typed and answered until the command ends; return its status."""
    import threading

    from moulin.cli.terminal import raw_terminal

    with raw_terminal(session, is_wanted=is_terminal):
        threading.Thread(
            target=_feed, args=(session,), kwargs={"is_terminal": is_terminal}, daemon=True
        ).start()
        parts: dict[int, list[bytes]] = {1: [], 2: []}
        try:
            for pipe, data in session:
                if is_json:
                    parts[pipe].append(data)
                else:
                    write_bytes(data, is_error=pipe != 1)
        except KeyboardInterrupt:
            return 130
    status = session.exit_code or 0
    if is_json:
        texts = [b"".join(parts[pipe]).decode(errors="replace") for pipe in (1, 2)]
        write_json({"exit_code": status, "output": texts[0], "errors": texts[1]})
    return status


def _feed(session: "Session", *, is_terminal: bool) -> None:
    import os

    while data := os.read(0, CHUNK):
        session.write(data)
    if not is_terminal:
        session.feed(b"")


def _ports(written: str) -> tuple[int, int]:
    first, colon, second = written.partition(":")
    numbers = [first, second if colon else first]
    if not all(number.isdigit() and int(number) < 65_536 for number in numbers) or first == "0":
        raise InvalidRequest(
            f"read {written!r}: it is no PORT or PORT:LOCAL", hint="for example 8888:9000"
        )
    return int(numbers[0]), int(numbers[1])


def _unit_of(view: "WorkloadView", unit: int, index: int | None) -> int:
    if index is None:
        return unit
    array = view.spec.array
    units = array.units_of((index,)) if array is not None else ()
    if not units:
        raise InvalidRequest(f"enter element {index} of {view.id}: it has none")
    return units[0]


def _terminal() -> str:
    import os

    return os.environ.get("TERM") or "xterm"


def _size() -> tuple[int, int]:
    import shutil

    columns, rows = shutil.get_terminal_size()
    return rows, columns
