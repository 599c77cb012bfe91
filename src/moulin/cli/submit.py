"""`moulin run`: one workload from a command or a file, submitted, tried out or followed to its end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperCommand

from moulin.cli.screen import (
    DETACHED_STATUS,
    answer,
    ran,
    say,
    sentences,
    write,
    write_bytes,
    write_json,
)
from moulin.cli.session import Data, IsJson, Project, connect
from moulin.domain.words import duration, energy, euros

if TYPE_CHECKING:
    from moulin.domain.control import Trial
    from moulin.domain.views import WorkloadView
    from moulin.domain.workload import WorkloadSpec
    from moulin.sdk import Moulin

app = typer.Typer(rich_markup_mode=None)
COMMAND: Final = "moulin.command"
NEWS_PERIOD_S: Final = 2.0

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE | -- COMMAND",
        help="Job file (.yaml), batch script (.sh) with its arguments, or a command.",
    ),
]
IsFollowing = Annotated[
    bool, typer.Option("--follow", "-f", help="Show the output and exit with the job's status.")
]
IsDryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say where, when and for how much; start nothing.")
]
NameFlag = Annotated[str | None, typer.Option("--name", help="Name of the job.")]
CpusFlag = Annotated[str | None, typer.Option("--cpus", help="CPUs of each task: 2 or 0.5.")]
MemoryFlag = Annotated[
    str | None, typer.Option("--memory", help="Memory of each task: 512MB, 64GB.")
]
AcceleratorsFlag = Annotated[
    str | None,
    typer.Option("--accelerators", "--gpus", help="Accelerators of each task: B300:8, or 2."),
]
NodesFlag = Annotated[
    int | None, typer.Option("--nodes", help="Nodes that start together, one task each.")
]
CountryFlag = Annotated[
    list[str] | None, typer.Option("--country", help="Only in this country; may be repeated.")
]
ZoneFlag = Annotated[
    list[str] | None, typer.Option("--zone", help="Only in this zone; may be repeated.")
]
TimeLimitFlag = Annotated[
    str | None, typer.Option("--time-limit", help="End it after this long: 30m, 6h.")
]
PriorityFlag = Annotated[
    int | None, typer.Option("--priority", help="0 to 100, higher first (50).")
]
EnvFlag = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable.")
]
LabelFlag = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="A label.")
]
WorkdirFlag = Annotated[
    Path | None,
    typer.Option(
        "--workdir",
        help="Folder to run in: relative, it is sent along; absolute, it is on the nodes.",
    ),
]
ImageFlag = Annotated[
    str | None,
    typer.Option("--image", metavar="IMAGE", help="Run it in this image's file system."),
]
SecretFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        metavar="VARIABLE[=NAME]",
        help="A variable with the value of a secret of the project.",
    ),
]
InputFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="PLACE=ADDRESS",
        help="Copy s3://… or an absolute path there before it starts.",
    ),
]
OutputFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        metavar="PLACE=ADDRESS",
        help="Copy that file or folder to s3://… or an absolute path when it has succeeded.",
    ),
]
RetryFlag = Annotated[
    int | None, typer.Option("--retry", help="How often to try, the first time included.")
]
DeadlineFlag = Annotated[
    str | None, typer.Option("--deadline", help="Give up when not done by then: 6h.")
]

RetentionFlag = Annotated[
    str | None,
    typer.Option(
        "--retention",
        help="Keep output and the job's own folder this long after its end: 1h, 30d (7d).",
    ),
]
ArrayFlag = Annotated[
    str | None, typer.Option("--array", metavar="0-99%10", help="Run it once for each index.")
]
AfterFlag = Annotated[
    list[str] | None,
    typer.Option("--after", metavar="ID[:any]", help="Start when that succeeded, or ended at all."),
]
HoldFlag = Annotated[bool, typer.Option("--hold", help="Wait until it is released.")]
StopSignalFlag = Annotated[
    str | None, typer.Option("--stop-signal", help="What it is asked to end with: USR1 (TERM).")
]
GraceFlag = Annotated[
    str | None, typer.Option("--grace", help="How long it then has to end: 30s, 5m (10s).")
]
NotifyFlag = Annotated[
    bool, typer.Option("--notify", help="Have the project's webhook told when it ends.")
]


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
    words: Words = None,
    *,
    is_following: IsFollowing = False,
    is_dry_run: IsDryRun = False,
    name: NameFlag = None,
    cpus: CpusFlag = None,
    memory: MemoryFlag = None,
    accelerators: AcceleratorsFlag = None,
    nodes: NodesFlag = None,
    countries: CountryFlag = None,
    zones: ZoneFlag = None,
    time_limit: TimeLimitFlag = None,
    priority: PriorityFlag = None,
    env: EnvFlag = None,
    labels: LabelFlag = None,
    workdir: WorkdirFlag = None,
    image: ImageFlag = None,
    secrets: SecretFlag = None,
    inputs: InputFlag = None,
    outputs: OutputFlag = None,
    retry: RetryFlag = None,
    deadline: DeadlineFlag = None,
    retention: RetentionFlag = None,
    array: ArrayFlag = None,
    after: AfterFlag = None,
    is_held: HoldFlag = False,
    stop_signal: StopSignalFlag = None,
    grace: GraceFlag = None,
    is_notified: NotifyFlag = False,
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
      moulin run train.sh
      moulin run --array 0-99%10 -- python3 sweep.py
      moulin run --image python:3.13 --secret HF_TOKEN --workdir . -- python3 train.py
    """
    from moulin.cli.asked import read_flags, wanted

    flags = read_flags(locals())
    spec = wanted(words or (), context.meta.get(COMMAND), flags)
    begin = _try_out if is_dry_run else _submit_and_follow if is_following else _submit
    with connect(data, project) as client:
        begin(client, spec, is_json=is_json)


def _submit(client: "Moulin", spec: "WorkloadSpec", *, is_json: bool) -> None:
    _say_what_is_sent(spec)
    view = client.workloads.submit(spec)
    answer(view, is_json=is_json, show=lambda: write(view.id))
    if not is_json:
        say(f"{view.name} is {view.state}; `moulin logs -f {view.id}` shows its output")


def _try_out(client: "Moulin", spec: "WorkloadSpec", *, is_json: bool) -> None:
    trial = client.workloads.try_out(spec)
    answer(trial, is_json=is_json, show=lambda: _show_trial(spec, trial))
    if not trial.is_possible:
        raise typer.Exit(1)


def _show_trial(spec: "WorkloadSpec", trial: "Trial") -> None:
    from moulin.domain.reasons import hint_of

    if not trial.is_possible:
        write(f"{spec.name} can never run here:")
    elif trial.nodes:
        write(f"{spec.name} would start now on {', '.join(trial.nodes)}")
        write(f"  zone         {', '.join(trial.zones)}")
    else:
        write(f"{spec.name} would wait:")
    for line in sentences(trial.reasons):
        write(f"  {line}")
    hint = hint_of(trial.reasons[0]) if trial.reasons else ""
    if hint:
        write(f"  hint: {hint}")
    if trial.is_possible:
        limit = duration(trial.time_limit_s * 1_000_000_000) if trial.time_limit_s else "none"
        write(f"  time limit   {limit}")
        write(f"  price        at most {euros(trial.reserved_neur)}")
        if trial.nodes:
            write(f"  energy       at most about {energy(trial.energy_mj)} (an estimate)")


def _submit_and_follow(client: "Moulin", spec: "WorkloadSpec", *, is_json: bool) -> None:
    _say_what_is_sent(spec)
    view = client.workloads.submit(spec)
    say(f"{view.id} {view.name} is {view.state}")
    try:
        _say_why_it_waits(client, view.id)
        for piece in client.workloads.follow(view.id):
            write_bytes(piece, is_error=is_json)
        view = client.workloads.wait(view.id)
    except KeyboardInterrupt:
        say(f"\nno longer following; {view.name} goes on. `moulin logs -f {view.id}` follows it")
        say(f"again, `moulin stop {view.id}` stops it.")
        raise typer.Exit(DETACHED_STATUS) from None
    for line in sentences(view.reasons):
        say(line)
    say(f"{view.name} {view.state} after {ran(view)}")
    if is_json:
        write_json(view)
    raise typer.Exit(_exit_status(view))


def _say_what_is_sent(spec: "WorkloadSpec") -> None:
    """Say that a folder goes along, which may take a while."""
    workdir = spec.task.workdir if spec.task is not None else ""
    if workdir and not Path(workdir).is_absolute():
        say(f"folder {Path(workdir).resolve()} goes along, unless the project has the same")


def _say_why_it_waits(client: "Moulin", id: str) -> None:
    """Say once why a job waits, here or where it was placed, when it still does after a moment."""
    import time

    deadline_s = time.monotonic() + NEWS_PERIOD_S
    while time.monotonic() < deadline_s:
        if client.workloads.get(id).state not in ("admitted", "placed"):
            return
        time.sleep(0.05)
    for line in sentences(client.workloads.why(id).reasons):
        say(f"waiting: {line}")


def _exit_status(view: "WorkloadView") -> int:
    """Return the job's own status: that of its first task that failed, else 0 or 1."""
    codes = [task.exit_code for unit in view.units for task in unit.tasks]
    failed = [code for code in codes if code]
    if view.state == "succeeded":
        return 0
    return failed[0] if failed and 0 < failed[0] < 256 else 1
