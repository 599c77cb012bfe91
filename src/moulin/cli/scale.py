"""Commands that change an endpoint while it serves: how many replicas, and what they serve."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moulin.cli.screen import answer, say, table
from moulin.cli.session import Data, IsJson, Project, Word, connect, find_workload
from moulin.domain.errors import InvalidRequest, Refused

if TYPE_CHECKING:
    from moulin.domain.views import UnitView, WorkloadView
    from moulin.domain.workload import EndpointSpec
    from moulin.sdk import Moulin

app = typer.Typer(rich_markup_mode=None)
ENDED: Final = frozenset({"failed", "cancelled", "refused"})
_LOOK_S: Final = 0.2
Replicas = Annotated[
    str,
    typer.Option(
        "--replicas",
        metavar="N|MIN-MAX",
        help="How many servers, or between which numbers load moves them (0-3: none when idle).",
    ),
]
Target = Annotated[
    int, typer.Option("--target", min=0, help="Requests for which one replica is wanted.")
]
Idle = Annotated[
    str, typer.Option("--idle", metavar="TIME", help="The last one goes after so long (10m).")
]
ColdStart = Annotated[
    str,
    typer.Option("--cold-start", metavar="TIME", help="Hold requests for a start so long (5m)."),
]
Wait = Annotated[
    float, typer.Option("--wait", metavar="S", help="Seconds to wait until it is so; 0: do not.")
]


def endpoint_spec(
    model: str, replicas: str, *, target: int = 0, idle: str = "", cold_start: str = ""
) -> "EndpointSpec":
    """Return an endpoint with the numbers of replicas that somebody wrote.

    Raises `InvalidRequest` for numbers that are none, `InvalidSpec` for what no job file may say.
    """
    from moulin.domain.jobfile import parse_job

    more = {"target": target, "idle": idle, "cold_start": cold_start}
    wanted = {key: value for key, value in more.items() if value}
    body: dict[str, object] = {"kind": "endpoint", "model": model, "replicas": replicas}
    found = parse_job(body, origin="the command line").endpoint
    assert found is not None
    if not wanted:
        return found
    if found.scaling is None:
        raise InvalidRequest(
            f"let load move {replicas} replica(s): that is one number",
            hint="write --replicas 0-3, from the least to the most",
        )
    numbers = {"min": found.scaling.replicas_min, "max": found.scaling.replicas_max}
    whole = parse_job({**body, "replicas": {**numbers, **wanted}}, origin="the command line")
    assert whole.endpoint is not None
    return replace(found, scaling=whole.endpoint.scaling)


@app.command()
def scale(
    word: Word,
    replicas: Annotated[str, typer.Argument(metavar="N|MIN-MAX", help="For example 2, or 0-3.")],
    *,
    target: Target = 0,
    idle: Idle = "",
    cold_start: ColdStart = "",
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Set how many replicas an endpoint has, or let its load move them.

    Replicas that go finish what they have begun first.

    \b
    Examples:
      moulin scale chat 2
      moulin scale chat 0-3 --idle 10m
    """
    wanted = endpoint_spec("any", replicas, target=target, idle=idle, cold_start=cold_start)
    with connect(data, project) as client:
        view = find_workload(client, word, kind="endpoint")
        view = client.endpoints.scale(view.id, wanted.replicas, scaling=wanted.scaling)

    def show() -> None:
        _show(view)
        say(f"`moulin why {view.id}` says what a replica waits for")

    answer(view, is_json=is_json, show=show)


@app.command()
def rollout(
    word: Word,
    *,
    model: Annotated[str, typer.Option("--model", help="Serve this model of the catalogue.")] = "",
    variant: Annotated[str, typer.Option("--variant", help="Serve this file of the model.")] = "",
    context: Annotated[int, typer.Option("--context", min=0, help="Tokens of context.")] = 0,
    parallel: Annotated[
        int, typer.Option("--parallel", min=0, help="Requests a replica answers at once.")
    ] = 0,
    cpus: Annotated[str, typer.Option("--cpus", help="CPUs of each replica.")] = "",
    memory: Annotated[str, typer.Option("--memory", help="Least memory of each replica.")] = "",
    is_back: Annotated[
        bool, typer.Option("--back", help="Go back to what it served before, at once.")
    ] = False,
    wait: Wait = 600.0,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Let an endpoint serve something else without cutting a stream.

    New replicas start beside the old ones; each old one leaves when a new one is ready, and finishes
    what it has begun. Without an option the replicas are renewed as they are.

    \b
    Examples:
      moulin rollout chat --variant q8_0
      moulin rollout chat --back
    """
    from moulin.domain.control import RolloutWanted
    from moulin.domain.units import parse_bytes, parse_cpu_milli

    wanted = RolloutWanted(
        model=model,
        variant=variant,
        context_tokens=context,
        parallel_requests=parallel,
        cpu_milli=parse_cpu_milli(cpus) if cpus else 0,
        memory_bytes=parse_bytes(memory) if memory else 0,
        is_back=is_back,
    )
    with connect(data, project) as client:
        found = find_workload(client, word, kind="endpoint")
        view = client.endpoints.rollout(found.id, wanted)
        if wait:
            say(f"{view.name} goes to revision {view.revision}; waiting until it serves")
            view = _wait_until_rolled_out(client, view, wait)
    answer(view, is_json=is_json, show=lambda: _show(view))


def _wait_until_rolled_out(client: "Moulin", view: "WorkloadView", wait_s: float) -> "WorkloadView":
    """Return the endpoint once it serves its revision alone; raises `Refused` when it does not."""
    deadline_s = time.monotonic() + wait_s
    revision = view.revision
    while not _is_rolled_out(view):
        is_other = view.state in ENDED or view.revision != revision
        if is_other or time.monotonic() > deadline_s:
            raise Refused(
                f"roll out {view.name}: it does not serve revision {revision} alone yet",
                hint=f"`moulin why {view.id}` says why; `moulin rollout {view.name} --back`",
            )
        time.sleep(_LOOK_S)
        view = client.workloads.get(view.id)
    return view


def _is_rolled_out(view: "WorkloadView") -> bool:
    serving = [unit for unit in view.units if unit.replica != "stopped"]
    ready = sum(unit.replica == "ready" and unit.revision == view.revision for unit in serving)
    return ready >= view.units_wanted and all(unit.revision == view.revision for unit in serving)


def _show(view: "WorkloadView") -> None:
    def cells(unit: "UnitView") -> tuple[str, ...]:
        return (str(unit.unit), str(unit.revision), unit.replica, unit.attempt)

    moved = ""
    if view.scaling is not None:
        moved = f", from {view.scaling.replicas_min} to {view.scaling.replicas_max} as load asks"
    say(f"{view.name}: {view.units_wanted} replica(s) of revision {view.revision}{moved}")
    table(
        ("replica", "revision", "is", "attempt"),
        (cells(unit) for unit in view.units),
        empty="no replicas",
    )
