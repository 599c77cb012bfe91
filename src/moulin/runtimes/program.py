"""What every model runtime does the same way: its arguments, its key, readiness and its end.

    python -m moulin.runtimes.NAME --model PATH --alias NAME --context N --parallel N --threads N
        --key-file FILE

A runtime checks before it loads, proves itself with one real request, says `host:port` in the file
named by MOULIN_READY_FILE, and stops on SIGTERM. It keeps nothing of what it is asked, not even
in a core dump.
"""

import argparse
import faulthandler
import http.client
import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from moulin.domain.errors import InvalidSpec, LocalError, MoulinError

READY_FILE_VARIABLE: Final = "MOULIN_READY_FILE"
SPIN_COUNT: Final = "200"
_PROBE_S: Final = 120
_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSpec:
    """What to serve; `context_tokens` is for one request, of which `parallel` run at once."""

    model_path: Path
    alias: str
    context_tokens: int
    parallel: int
    threads: int
    key: str


def run(serve: Callable[[ServeSpec], NoReturn], name: str, arguments: Sequence[str] | None) -> int:
    """Serve until told to stop, which ends the process; return 1 when serving was not possible."""
    # 1 byte, unlike 0, also stops systems that pipe core dumps to a program: see core(5).
    limit = 0 if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    try:
        serve(read_arguments(name, arguments))
    except MoulinError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"\nhint: {error.hint}", file=sys.stderr)
    return 1


def read_arguments(name: str, arguments: Sequence[str] | None = None) -> ServeSpec:
    """Read the command line; a wrong one ends the process with status 2, as argparse does.

    Raises `LocalError` for a key file that others may read, or an empty one, and `InvalidSpec`
    for less than one request or thread.
    """
    parser = argparse.ArgumentParser(prog=f"moulin.runtimes.{name}")
    parser.add_argument("--model", required=True, type=Path, help="model file to serve")
    parser.add_argument("--alias", required=True, help="name the model answers to")
    parser.add_argument("--context", type=int, default=4096, help="tokens of one request")
    parser.add_argument("--parallel", type=int, default=1, help="requests at once")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all there are")
    parser.add_argument("--key-file", required=True, type=Path, help="file with the API key, 0600")
    found = parser.parse_args(arguments)
    spec = ServeSpec(
        model_path=found.model,
        alias=found.alias,
        context_tokens=found.context,
        parallel=found.parallel,
        threads=found.threads or len(os.sched_getaffinity(0)),
        key=read_key(found.key_file),
    )
    if spec.parallel < 1 or spec.threads < 1:
        raise InvalidSpec(f"serve {spec.parallel} requests at once on {spec.threads} threads")
    return spec


def read_key(path: Path) -> str:
    """Return the key in a file that only its owner may read.

    Raises `LocalError` when it is missing, empty or open to others.
    """
    try:
        mode = path.stat().st_mode
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as cause:
        raise LocalError(f"read the key file {path}: {cause}") from cause
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise LocalError(f"read the key file {path}: others may read it", hint=f"chmod 600 {path}")
    if not key:
        raise LocalError(f"read the key file {path}: it is empty")
    return key


def catch_stop() -> int:
    """Take SIGTERM and SIGINT from now on; return a descriptor that is readable once one came.

    A descriptor, because the kernel may hand the signal to any of the library's threads.
    """
    asked, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return asked


def stay(address: str) -> NoReturn:
    """Announce a server that is ready, and end the process when SIGTERM or SIGINT asks for it."""
    stop_asked = catch_stop()
    announce(address)
    os.read(stop_asked, 1)
    leave()


def leave() -> NoReturn:
    """End the process with status 0; requests in flight are cut, as the gateway expects of a stop.

    A server's own destructor cuts them too, but only at the next keep-alive of each stream, up
    to 30 s later; nothing here has to be written before the end.
    """
    sys.stderr.flush()
    os._exit(0)


def announce(address: str) -> None:
    """Write `host:port` where the engine looks for it, whole or not at all."""
    name = os.environ.get(READY_FILE_VARIABLE, "")
    if name:
        draft = Path(f"{name}.{os.getpid()}")
        draft.write_text(f"{address}\n", encoding="ascii")
        draft.replace(name)
    print(f"ready {address}", file=sys.stderr, flush=True)


def silence_library() -> None:
    """Send what native code prints to nowhere; Python's own streams go on.

    A crash still leaves its signal and Python stack in the log, which quote no request.
    """
    sys.stderr.flush()
    kept = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    sys.stdout = sys.stderr = kept
    faulthandler.enable(file=kept)


def prove(address: str, key: str, path: str, body: Mapping[str, object]) -> dict[str, Any]:
    """Ask for health and then one real request through the front door; return its answer.

    Raises `LocalError` when the server does not answer both with success and a JSON object.
    """
    connection = http.client.HTTPConnection(address, timeout=_PROBE_S)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        _ask(connection, "GET", "/health", None, headers)
        answer = json.loads(_ask(connection, "POST", path, json.dumps(body), headers))
    except (OSError, http.client.HTTPException, ValueError) as cause:
        raise LocalError(f"try the model: {cause!r}") from cause
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise LocalError(f"try the model: {path} answered no object")
    return answer


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: str | None,
    headers: dict[str, str],
) -> bytes:
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise LocalError(f"try the model: {path} answered {response.status}")
    return answer


def waiting_politely(environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return what to add so that threads which wait for one another soon sleep.

    By default they spin for about a millisecond. With other work on the same CPUs that starves the
    thread they wait for and burns CPU time that is then metered as energy. Measured with SmolLM2
    135M, 2 threads on 2 CPUs, default against this: alone 105 and 90 tokens/s; beside two busy
    loops 6 and 18 tokens/s, 43 and 7 CPU-seconds for the same answers.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        return {}
    return {"GOMP_SPINCOUNT": SPIN_COUNT}


def memory_available_bytes() -> int:
    """Return what this process may still take: the machine's available memory or its cgroup's."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in text.splitlines())
    machine = int(lines["MemAvailable"].split()[0]) * 1024
    own = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition(":")[2]
    limits = [machine]
    folder = _CGROUP / own.lstrip("/")
    for place in (folder, *folder.parents):
        if place.is_relative_to(_CGROUP):
            limits.extend(_room_in(place))
    return min(limits)


def _room_in(cgroup: Path) -> list[int]:
    """Return the room below one cgroup's limit; nothing where there is no limit."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        current = int((cgroup / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [max(int(limit) - current, 0)]
