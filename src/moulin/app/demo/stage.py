"""The Moulin that a demo starts, and what its steps hand on to one another.

It starts the same supervisor as `moulin up`, in a session of its own, and promises to end
everything again, whatever happened in between.
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from moulin.app.datadir import CREDENTIALS, LOGS, make_directory, read_json
from moulin.app.demo.processes import processes_of
from moulin.app.demo.screen import Screen
from moulin.app.down import bring_down
from moulin.app.processes import ProcessMark, end
from moulin.app.settings import resolve
from moulin.domain.control import KeyWanted
from moulin.domain.errors import DeadlineExceeded, LocalError, MoulinError
from moulin.domain.principal import Role
from moulin.domain.views import NodeView
from moulin.sdk import Credentials, Moulin

HERE: Final = Path(__file__).parent
FACTORY_FILE: Final = HERE / "factory.yaml"
FIRST_FILE: Final = HERE / "first" / "factory.yaml"
METERING_INTERVAL_S: Final = 5
START_S: Final = 60.0
STOP_S: Final = 30.0
KEY_S: Final = 20.0
POLL_S: Final = 0.1


class NotAsPromised(MoulinError):
    """The demo looked from outside, and something was not as Moulin promises."""

    code = "not_as_promised"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What `moulin demo` is asked; without `data` a temporary directory is used."""

    model: str
    docs: Path | None = None
    data: Path | None = None
    is_json: bool = False
    is_kept: bool = False


@dataclass(slots=True, kw_only=True)
class Stage:
    """A running Moulin with two clients: the operator's and the first project's."""

    wanted: Wanted
    screen: Screen
    data: Path
    first_file: Path = FIRST_FILE
    process: "subprocess.Popen[str] | None" = None
    operator: Moulin | None = None
    tenant: Moulin | None = None
    node: NodeView | None = None
    model_digest: str = ""
    endpoint: str = ""
    job: str = ""
    briefs: list[dict[str, Any]] = field(default_factory=list)

    def close(self) -> None:
        """End what was started beside Moulin: nothing, here; safe to repeat."""

    @property
    def workplace(self) -> Path:
        """Return where the demo keeps what is its own: documents, keys, briefs, receipts."""
        return self.data / "demo"

    @property
    def gateway_url(self) -> str:
        """Return the address that OpenAI clients are given."""
        return f"{self.as_tenant.credentials.gateway_url}/v1"

    @property
    def as_operator(self) -> Moulin:
        """Return the operator's client."""
        assert self.operator is not None
        return self.operator

    @property
    def as_tenant(self) -> Moulin:
        """Return the client of the project that runs the job."""
        assert self.tenant is not None
        return self.tenant


def promise(is_kept: bool, what: str, hint: str = "") -> None:  # noqa: FBT001 - reads as an assertion
    """Raise `NotAsPromised` unless what Moulin promises was seen."""
    if not is_kept:
        raise NotAsPromised(what, hint=hint)


def wait_until(is_true: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Look again and again; raises `DeadlineExceeded` saying what did not happen."""
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


def issue_key(stage: Stage, client: Moulin, name: str, project: str = "") -> str:
    """Return the secret of a new key that may call models only, once the gateway knows it."""
    wanted = KeyWanted(name=name, role=Role.INFERENCE, models=(stage.wanted.model,))
    secret = client.keys.create(wanted, project=project).secret
    headers = {"authorization": f"Bearer {secret}"}

    def is_known() -> bool:
        return httpx.get(f"{stage.gateway_url}/models", headers=headers).status_code == 200

    wait_until(is_known, KEY_S, "the gateway learns of a new key")
    return secret


def start(stage: Stage) -> dict[str, Any]:
    """Start Moulin on the stage's directory; return what it says of itself.

    Raises `LocalError` with its own words when it does not start.
    """
    make_directory(stage.data)
    stage.workplace.mkdir(mode=0o700, exist_ok=True)
    log_path = stage.data / LOGS / "supervisor.log"
    models = resolve().settings.models
    with log_path.open("w", encoding="utf-8") as log:
        stage.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "moulin.app.supervisor", "--data", str(stage.data)),
                *("--control-port", "0", "--gateway-port", "0"),
                *("--factory", str(stage.first_file), "--json"),
                *("--metering-interval-s", str(METERING_INTERVAL_S)),
                *(("--models", models) if models else ()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # a Ctrl-C of the terminal reaches the demo alone
        )
    facts = _first_words(stage.process, log_path)
    known = read_json(stage.data / CREDENTIALS)
    stage.operator = _client(known, "operator_key")
    stage.tenant = _client(known, "api_key")
    return facts


def end_everything(stage: Stage) -> tuple[ProcessMark, ...]:
    """Stop workloads and Moulin; return the processes that are left all the same: none, one hopes."""
    for client in (stage.operator, stage.tenant):
        if client is not None:
            client.close()
    stage.operator = stage.tenant = None
    if (stage.data / CREDENTIALS).exists():
        bring_down(stage.data, wait_s=STOP_S, report=lambda _: None)
    if stage.process is not None:
        stage.process.terminate()
        stage.process.wait(timeout=STOP_S)
        if stage.process.stdout is not None:
            stage.process.stdout.close()
        stage.process = None
    deadline_s = time.monotonic() + STOP_S / 3
    while (left := processes_of(stage.data)) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return left


def end_by_force(stage: Stage) -> tuple[ProcessMark, ...]:
    """End every process of the stage's directory, for when it could not be done in good order."""
    for mark in (left := processes_of(stage.data)):
        end(mark, grace_s=5.0)
    return left


def _client(known: dict[str, Any], key: str) -> Moulin:
    return Moulin(
        credentials=Credentials(
            control_url=str(known["control_url"]),
            gateway_url=str(known["gateway_url"]),
            api_key=str(known[key]),
            project=str(known["project"]),
        )
    )


def _first_words(process: "subprocess.Popen[str]", log_path: Path) -> dict[str, Any]:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if readable else ""
    facts = json.loads(line) if line.strip() else {}
    if "control_url" not in facts:
        told = log_path.read_text(encoding="utf-8", errors="replace").strip()[-1000:]
        said = facts.get("error", {}).get("message", "") or told or "it said nothing"
        raise LocalError(f"start Moulin: {said}", hint=f"its log is {log_path}")
    found: dict[str, Any] = facts
    return found
