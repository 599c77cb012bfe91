"""Serves one model file over HTTP on the loopback address: llama.cpp's own server, in this process.

    python -m moulin.runtimes.llm --model PATH --alias NAME --context N --parallel N --threads N
        --key-file FILE

It checks the file and the memory before loading, says `host:port` in the file named by
MOULIN_READY_FILE once a first token was generated, and stops on SIGTERM. Every route that
computes wants the key. It keeps nothing of what it is asked: after start the library's own
output goes nowhere, because its warnings quote requests (bad JSON, grammars, tool choices).

Reference: llama.cpp's server, as packed by xllamacpp.
"""

import argparse
import faulthandler
import http.client
import json
import mmap
import os
import signal
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import urlsplit

from moulin.domain.errors import InvalidSpec, LocalError, MoulinError, SourceError
from moulin.domain.gguf import Header, check_whole, read_header
from moulin.domain.model import MemoryNeed, architecture_of, repacked_bytes, serving_memory

READY_FILE_VARIABLE: Final = "MOULIN_READY_FILE"
_PROBE_S: Final = 120
_ERRORS_ONLY: Final = 1
SPIN_COUNT: Final = "200"
_CGROUP: Final = Path("/sys/fs/cgroup")


class _Server(Protocol):
    """What is used of xllamacpp's server; it listens from construction until it is deleted."""

    listening_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSpec:
    """What to serve; `context_tokens` is for one request, of which `parallel` run at once."""

    model_path: Path
    alias: str
    context_tokens: int
    parallel: int
    threads: int
    key: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, which ends the process; return 1 when serving was not possible."""
    try:
        serve(read_arguments(arguments))
    except MoulinError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"\nhint: {error.hint}", file=sys.stderr)
    return 1


def read_arguments(arguments: Sequence[str] | None = None) -> ServeSpec:
    """Read the command line; a wrong one ends the process with status 2, as argparse does.

    Raises `LocalError` for a key file that others may read, or an empty one.
    """
    parser = argparse.ArgumentParser(prog="moulin.runtimes.llm", description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="GGUF file to serve")
    parser.add_argument("--alias", required=True, help="name the model answers to")
    parser.add_argument("--context", type=int, default=4096, help="tokens of one request")
    parser.add_argument("--parallel", type=int, default=1, help="requests at once")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all there are")
    parser.add_argument("--key-file", required=True, type=Path, help="file with the API key, 0600")
    found = parser.parse_args(arguments)
    return ServeSpec(
        model_path=found.model,
        alias=found.alias,
        context_tokens=found.context,
        parallel=found.parallel,
        threads=found.threads or len(os.sched_getaffinity(0)),
        key=read_key(found.key_file),
    )


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


def serve(spec: ServeSpec) -> NoReturn:
    """Check, load, prove with one token, announce, and wait for SIGTERM or SIGINT.

    Until the model is loaded a signal ends the process at once, as for any program.

    Raises `SourceError` for a damaged model file, `InvalidSpec` for a context the model cannot
    have, `LocalError` when memory is short, the extra is missing or the server does not answer.
    """
    header = read_model(spec.model_path)
    need = check_request(spec, header)
    check_memory(need, memory_available_bytes())
    server = start_server(spec)
    address = urlsplit(server.listening_address).netloc
    silence_library()
    prove_ready(address, spec.key, spec.alias)
    stop_asked = catch_stop()
    announce(address)
    os.read(stop_asked, 1)
    leave()


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


def leave() -> NoReturn:
    """End the process with status 0; requests in flight are cut, as the gateway expects of a stop.

    The server's own destructor cuts them too, but only at the next keep-alive of each stream, up
    to 30 s later; nothing here has to be written before the end.
    """
    sys.stderr.flush()
    os._exit(0)


def read_model(path: Path) -> Header:
    """Read the header of the model file and compare it with the file's size.

    Raises `SourceError` when the file is missing, no GGUF, damaged or cut off.
    """
    try:
        with path.open("rb") as file:
            # Not closed by hand: a view of it may outlive this block in an error's traceback.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = read_header(memoryview(data))
        check_whole(header, len(data))
        return header
    except (OSError, ValueError) as cause:
        raise SourceError(f"read the model file {path}: {cause}") from cause


def check_request(spec: ServeSpec, header: Header) -> MemoryNeed:
    """Return the memory that serving takes.

    Raises `InvalidSpec` for a context longer than the model knows, or less than one of anything.
    """
    architecture = architecture_of(header)
    if not 1 <= spec.context_tokens <= architecture.context_max_tokens:
        raise InvalidSpec(
            f"serve a context of {spec.context_tokens} tokens: "
            f"this model takes 1 to {architecture.context_max_tokens}"
        )
    if spec.parallel < 1 or spec.threads < 1:
        raise InvalidSpec(f"serve {spec.parallel} requests at once on {spec.threads} threads")
    return serving_memory(
        architecture,
        spec.model_path.stat().st_size + repacked_bytes(header),
        context_tokens=spec.context_tokens,
        parallel=spec.parallel,
    )


def check_memory(need: MemoryNeed, available_bytes: int) -> None:
    """Refuse to load what cannot fit.

    Raises `LocalError` with the numbers.
    """
    if need.total_bytes > available_bytes:
        raise LocalError(
            f"load the model: {need.total_bytes // 10**6 + 1} MB of memory are needed "
            f"({need.weights_bytes // 10**6} MB weights, {need.kv_cache_bytes // 10**6} MB KV "
            f"cache), {available_bytes // 10**6} MB are available",
            hint="ask for a shorter context, fewer requests at once or a smaller model",
            details={"needed_bytes": need.total_bytes, "available_bytes": available_bytes},
        )


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


def start_server(spec: ServeSpec) -> _Server:
    """Load the model and listen on a free port of the loopback address; returns when loaded.

    Raises `LocalError` when the extra is missing or the library refuses the model.
    """
    # OpenMP reads its environment once, when the library comes with it.
    os.environ.update(waiting_politely(os.environ))
    try:
        import xllamacpp
    except ImportError as cause:
        raise LocalError(
            "serve a model: xllamacpp is not installed", hint="pip install 'moulin[llm]'"
        ) from cause
    try:
        server: _Server = xllamacpp.Server(parameters(xllamacpp.CommonParams(), spec))
    except (RuntimeError, MemoryError) as cause:
        raise LocalError(
            f"load {spec.model_path}: llama.cpp refused it (its words are above)",
            hint="it may be of a kind this llama.cpp does not know, or memory may be short",
        ) from cause
    return server


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


def parameters(params: Any, spec: ServeSpec) -> Any:
    """Fill llama.cpp's parameters; `params` is a fresh `CommonParams`."""
    params.model.path = str(spec.model_path)
    params.model_alias = {spec.alias}
    params.api_keys = [spec.key]
    params.port = 0
    # llama.cpp shares the whole context out among the slots.
    params.n_ctx = spec.context_tokens * spec.parallel
    params.n_parallel = spec.parallel
    params.kv_unified = False
    params.cpuparams.n_threads = spec.threads
    params.cpuparams_batch.n_threads = spec.threads
    params.use_jinja = True
    # Sizes are what was asked for and refused above when they do not fit, never adapted silently.
    params.fit_params = False
    # Prompts of ended requests would be kept in up to 8 GiB of memory.
    params.cache_ram_mib = 0
    params.verbosity = _ERRORS_ONLY
    # Routes that show what other requests hold, or that nobody needs.
    params.endpoint_slots = False
    params.endpoint_props = False
    params.ui = False
    return params


def prove_ready(address: str, key: str, alias: str) -> None:
    """Generate one token through the front door.

    Raises `LocalError` when the server does not answer with one.
    """
    connection = http.client.HTTPConnection(address, timeout=_PROBE_S)
    body = {"model": alias, "prompt": "a", "max_tokens": 1, "cache_prompt": False}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        _ask(connection, "GET", "/health", None, headers)
        answer = _ask(connection, "POST", "/v1/completions", json.dumps(body), headers)
        generated = json.loads(answer)["usage"]["completion_tokens"]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as cause:
        raise LocalError(f"try the model: {cause!r}") from cause
    finally:
        connection.close()
    if generated < 1:
        raise LocalError("try the model: it generated no token")


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


if __name__ == "__main__":
    sys.exit(main())
