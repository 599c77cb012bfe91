"""Commands of this machine: start and stop Moulin, look for trouble, show settings and version."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moulin.cli.screen import answer, say, table, write
from moulin.cli.session import IsJson
from moulin.domain.errors import InvalidRequest

if TYPE_CHECKING:
    from moulin.app.settings import Settings

app = typer.Typer(rich_markup_mode=None)
config = typer.Typer(
    help="Show the settings that apply here.", no_args_is_help=True, rich_markup_mode=None
)

DataText = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Data directory (.moulin).")
]
ControlPort = Annotated[
    int | None, typer.Option("--control-port", help="Port of the control API (8700); 0 picks one.")
]
GatewayPort = Annotated[
    int | None, typer.Option("--gateway-port", help="Port of the gateway (8701); 0 picks one.")
]


Nodes = Annotated[
    int | None,
    typer.Option("--nodes", help="Divide this machine into so many nodes (first start)."),
]
Country = Annotated[
    str | None,
    typer.Option(
        "--country", help="Country this machine is in, as you assert it: FR, SE, … (first start)."
    ),
]
FactoryFile = Annotated[
    Path | None,
    typer.Option("--factory", help="Operator file to begin with instead of this machine alone."),
]
MeteringInterval = Annotated[
    float | None, typer.Option("--metering-interval", metavar="S", help="Seconds per interval.")
]
Listen = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="ADDRESS",
        help="Serve other machines too, on this address (127.0.0.1); 0.0.0.0 is all. Needs TLS.",
    ),
]
ControlListen = Annotated[
    str | None,
    typer.Option(
        "--control-listen", metavar="ADDRESS", help="Another address for the control API alone."
    ),
]
Tls = Annotated[
    str | None,
    typer.Option(
        "--tls", metavar="self", help="self: make a certificate, and a CA that clients can trust."
    ),
]
TlsNames = Annotated[
    str | None,
    typer.Option(
        "--tls-names",
        metavar="NAME,…",
        help="Names and addresses for --tls self, besides this machine's own.",
    ),
]
PlainHttp = Annotated[
    bool | None,
    typer.Option(
        "--insecure-plain-http",
        help="Serve other machines without TLS: keys, prompts and answers can be read on the way.",
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", help="Serve with TLS: PEM file with the certificate and its chain."),
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", help="PEM file with the key of --tls-cert.")
]


@app.command()
def up(
    *,
    data: DataText = None,
    control_port: ControlPort = None,
    gateway_port: GatewayPort = None,
    nodes: Nodes = None,
    country: Country = None,
    factory: FactoryFile = None,
    metering_interval: MeteringInterval = None,
    listen: Listen = None,
    control_listen: ControlListen = None,
    tls: Tls = None,
    tls_names: TlsNames = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure_plain_http: PlainHttp = None,
    is_json: IsJson = False,
) -> None:
    """Start Moulin on this machine and stay in the foreground.

    It is ready when the control API and the gateway answer; models load after that. Ctrl-C stops
    Moulin and leaves running workloads alone: the next `moulin up` takes them over again, and
    `moulin down` stops everything. Other machines are served where --listen says so, with TLS; a
    renewed certificate is taken up without a restart.

    \b
    Examples:
      moulin up
      moulin up --listen 0.0.0.0 --tls self
      moulin up --listen 0.0.0.0 --tls-cert mill.pem --tls-key mill.key
      moulin up --country FR --nodes 2
      moulin up --factory examples/07_factory.yaml --data /var/lib/moulin
    """
    from moulin.app.outside import check_listening
    from moulin.app.settings import resolve

    settings = resolve(
        {
            "data": data,
            "control_port": control_port,
            "gateway_port": gateway_port,
            "nodes": nodes,
            "country": country,
            "metering_interval_s": metering_interval,
            "listen": listen,
            "control_listen": control_listen,
            "tls": tls,
            "tls_names": tls_names,
            "insecure_plain_http": insecure_plain_http,
            "tls_cert": str(tls_cert) if tls_cert is not None else None,
            "tls_key": str(tls_key) if tls_key is not None else None,
        }
    ).settings
    _check_factory(factory)
    check_listening(settings)
    command = _supervisor_command(settings, factory)
    # The supervisor takes this process over, so that what stays for hours stays small.
    os.execv(sys.executable, [*command, "--json"] if is_json else command)  # noqa: S606


def _supervisor_command(settings: "Settings", factory: Path | None) -> list[str]:
    command: list[str] = [sys.executable, "-m", "moulin.app.supervisor", "--data", settings.data]
    flags: dict[str, Any] = {
        "--control-port": settings.control_port,
        "--gateway-port": settings.gateway_port,
        "--nodes": settings.nodes,
        "--country": settings.country,
        "--metering-interval-s": settings.metering_interval_s,
        "--database": settings.database,
        "--models": settings.models,
        "--listen": settings.listen,
        "--control-listen": settings.control_listen,
        "--tls": settings.tls,
        "--tls-names": settings.tls_names,
        "--tls-cert": settings.tls_cert and str(Path(settings.tls_cert).resolve()),
        "--tls-key": settings.tls_key and str(Path(settings.tls_key).resolve()),
        "--start-wait-s": settings.start_wait_s,
        "--factory": str(factory.resolve()) if factory is not None else "",
    }
    for flag, value in flags.items():
        if value != "":
            command += [flag, str(value)]
    words = {
        "--insecure-plain-http": settings.insecure_plain_http,
        "--usage-figures": settings.usage_figures,
    }
    return [*command, *(word for word, is_set in words.items() if is_set)]


@app.command()
def down(
    data: DataText = None,
    wait: Annotated[
        float, typer.Option("--wait", metavar="S", help="Seconds that workloads get to end.")
    ] = 60.0,
    is_json: IsJson = False,
) -> None:
    """Stop every workload, then Moulin itself.

    Works without a running Moulin too: whatever an earlier one left running is stopped.
    """
    from moulin.app.down import bring_down
    from moulin.app.settings import resolve

    stopped = bring_down(Path(resolve({"data": data}).settings.data), wait_s=wait, report=say)

    def show() -> None:
        if not (stopped.was_running or stopped.workloads or stopped.steps):
            write("nothing was running")
            return
        left_over = f" and {stopped.steps} task(s) left over" if stopped.steps else ""
        write(f"stopped Moulin, {stopped.workloads} workload(s){left_over}")

    answer(stopped, is_json=is_json, show=show)


@app.command()
def doctor(
    data: DataText = None,
    control_port: ControlPort = None,
    gateway_port: GatewayPort = None,
    is_offline: Annotated[
        bool, typer.Option("--offline", help="Leave out the checks that ask other machines.")
    ] = False,
    is_json: IsJson = False,
) -> None:
    """Check what Moulin needs on this machine.

    Each line says ok, warn or fail, with a hint for whatever is missing. Exits with 1 when something would keep Moulin from working; warnings do not.
    """
    from moulin.app.doctor import State, examine
    from moulin.app.settings import resolve

    given = {"data": data, "control_port": control_port, "gateway_port": gateway_port}
    checks = []
    for check in examine(resolve(given).settings, is_offline=is_offline):
        checks.append(check)
        if not is_json:
            write(f"{check.state.value:<5} {check.name}: {check.message}")
            if check.hint:
                write(f"      hint: {check.hint}")
    is_well = all(check.state is not State.FAIL for check in checks)
    answer({"ok": is_well, "checks": checks}, is_json=is_json, show=lambda: None)
    raise typer.Exit(0 if is_well else 1)


@app.command()
def version(is_json: IsJson = False) -> None:
    """Print the version of Moulin and of Python."""
    import platform

    from moulin import __version__

    facts = {"version": __version__, "python": platform.python_version()}
    answer(facts, is_json=is_json, show=lambda: write(f"moulin {__version__}"))


@config.command("show")
def config_show(data: DataText = None, is_json: IsJson = False) -> None:
    """Print every setting with its value and where the value comes from."""
    import dataclasses

    from moulin.app.settings import resolve

    found = resolve({"data": data})
    values = dataclasses.asdict(found.settings)
    report = {name: {"value": values[name], "origin": found.origins[name]} for name in values}

    def show() -> None:
        rows = [(name, str(each["value"]), str(each["origin"])) for name, each in report.items()]
        table(("setting", "value", "from"), rows)

    answer(report, is_json=is_json, show=show)


def _check_factory(factory: Path | None) -> None:
    """Refuse a wrong operator file before anything is started."""
    if factory is None:
        return
    from moulin.app.files import read_factory_file
    from moulin.domain.factory import Project

    if not any(isinstance(each, Project) for each in read_factory_file(factory)):
        raise InvalidRequest(
            f"start with {factory}: it declares no project",
            hint="add one under `projects:`, so that somebody can be given a key",
        )
