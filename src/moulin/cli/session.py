"""What every remote command needs: its common options, a connection, and the workload a word means.

It decides whose key is used (the project's, or the operator's where the factory is asked about) and
never shows one.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from moulin.domain.errors import InvalidRequest, NotFound, Unavailable

if TYPE_CHECKING:
    from moulin.domain.views import WorkloadView
    from moulin.sdk import Moulin

IsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="MOULIN_DATA",
        metavar="DIR",
        help="Data directory of the Moulin to talk to (here: .moulin).",
    ),
]
Project = Annotated[
    str,
    typer.Option("--project", envvar="MOULIN_PROJECT", help="Project to act in (the key's own)."),
]
Word = Annotated[
    str, typer.Argument(metavar="ID", help="Its id, the beginning of it, or its name.")
]
SEARCHED_MAX: Final = 1_000
_ID_CHARACTERS: Final = 30
_LOOPBACK: Final = "127.0.0.1"
_RESTART_S: Final = 20.0


def connect(data: Path | None, project: str = "", *, is_operator: bool = False) -> "Moulin":
    """Return a connection to the control plane of a data directory, or of the environment.

    Raises `NotFound` where no credentials are, `InvalidRequest` for ones that cannot be used.
    """
    import os
    import sys
    from dataclasses import replace

    # httpx brings a command line of its own, with click, rich and pygments: a third of a second.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type] # None forbids the import
    from moulin.sdk import Moulin, find_credentials, read_credentials
    from moulin.sdk.credentials import CA_VARIABLE

    file = _credentials_file(data)
    found = read_credentials(file) if data is not None else find_credentials(project=project)
    ca = os.environ.get(CA_VARIABLE, "") or found.ca
    found = replace(found, project=project or found.project, ca=ca)
    if is_operator and file.is_file():
        key = _operator_key(file)
        found = replace(found, api_key=key or found.api_key)
    if not found.api_key:
        raise NotFound(
            "find a key for the control plane: there is none here",
            hint="start one with `moulin up`, name its directory with --data, or set "
            "MOULIN_URL and MOULIN_API_KEY",
        )
    _await_control(file.parent, found.control_url)
    return Moulin(credentials=found)


def find_workload(client: "Moulin", word: str, *, kind: str = "") -> "WorkloadView":
    """Return the workload a word means: an id, a unique beginning of one, or a name.

    Of several with one name, the one that has not ended, else the newest.

    Raises `NotFound` when nothing fits, `InvalidRequest` when several do.
    """
    if "_" in word and len(word) == _ID_CHARACTERS:
        return client.workloads.get(word)
    project = client.credentials.project
    known = list(client.workloads.every(project=project, kind=kind, limit=SEARCHED_MAX))
    named = [view for view in known if view.name == word]
    begun = [view for view in known if view.id.startswith(word) and len(word) > len("job_")]
    if named:
        return _of_one_name(named, word)
    if len(begun) > 1:
        raise _ambiguous(word, begun)
    if begun:
        return begun[0]
    raise _unknown(word, known)


def live(views: "list[WorkloadView]") -> "list[WorkloadView]":
    """Return those that have not ended."""
    from moulin.domain.workload import FINAL_WORKLOAD_STATES

    return [view for view in views if view.state not in FINAL_WORKLOAD_STATES]


def _credentials_file(data: Path | None) -> Path:
    """Return the file whose keys are meant; one that is not there when a key is given otherwise."""
    import os

    if data is not None:
        return data / "credentials.json"
    if os.environ.get("MOULIN_URL") or os.environ.get("MOULIN_API_KEY"):
        return Path(os.devnull) / "none"
    return Path(os.environ.get("MOULIN_CREDENTIALS") or ".moulin/credentials.json")


def _await_control(data: Path, control_url: str) -> None:
    """Wait for a control process that its supervisor is starting; say at once that none runs.

    Only where the address is the one that this directory's supervisor serves.
    """
    import time

    from moulin.app.datadir import read_run
    from moulin.app.listening import is_well
    from moulin.app.processes import is_alive

    host, _, port = control_url.rpartition(":")
    schemes = {f"http://{_LOOPBACK}": False, f"https://{_LOOPBACK}": True}
    if host not in schemes or not port.isdigit() or not data.is_dir():
        return
    is_tls = schemes[host]
    run = read_run(data)
    if run.supervisor is None or not is_alive(run.supervisor):
        if is_well(int(port), is_tls=is_tls):
            return
        raise Unavailable(
            f"reach the control plane at {control_url}: Moulin does not run on {data}",
            hint="start it with `moulin up`, or name another directory with --data",
        )
    deadline_s = time.monotonic() + _RESTART_S
    while not is_well(int(port), is_tls=is_tls) and time.monotonic() < deadline_s:
        time.sleep(0.1)


def _operator_key(file: Path) -> str:
    from moulin.app.datadir import read_json

    return str(read_json(file).get("operator_key") or "")


def _of_one_name(named: "list[WorkloadView]", word: str) -> "WorkloadView":
    running = live(named)
    if len(running) > 1:
        raise _ambiguous(word, running)
    return running[0] if running else named[0]


def _ambiguous(word: str, views: "list[WorkloadView]") -> InvalidRequest:
    ids = ", ".join(view.id for view in views[:5])
    return InvalidRequest(f"{word!r} means {len(views)} workloads", hint=f"give one id: {ids}")


def _unknown(word: str, known: "list[WorkloadView]") -> NotFound:
    from moulin.domain.section import nearest

    names = list(dict.fromkeys(view.name for view in known))[:20]
    hint = nearest(word, names) if names else "`moulin jobs` lists what there is"
    return NotFound(f"find workload {word!r}: there is none", hint=hint)
