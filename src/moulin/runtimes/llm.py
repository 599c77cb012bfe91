"""Serves one model file over HTTP on the loopback address: llama.cpp's own server, in this process.

    python -m moulin.runtimes.llm --model PATH --alias NAME --context N --parallel N --threads N
        --key-file FILE

It checks the file and the memory before loading, says `host:port` in the file named by
MOULIN_READY_FILE once a first token was generated, and stops on SIGTERM. Every route that
computes wants the key. It keeps nothing of what it is asked: after start the library's own
output goes nowhere, because its warnings quote requests (bad JSON, grammars, tool choices).

Reference: llama.cpp's server, as packed by xllamacpp.
"""

import mmap
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import urlsplit

from moulin.domain.errors import InvalidSpec, LocalError, SourceError
from moulin.domain.gguf import Header, check_whole, read_header
from moulin.domain.model import Ability, MemoryNeed, architecture_of, repacked_bytes, serving_memory
from moulin.domain.runtime import Runtime
from moulin.runtimes.program import (
    ServeSpec,
    memory_available_bytes,
    prove,
    run,
    silence_library,
    stay,
    waiting_politely,
)

RUNTIME: Final = Runtime(
    name="llm",
    title="text generation: llama.cpp's own server",
    abilities=(Ability.GENERATE,),
    modules=("xllamacpp",),
    extra="llm",
)
_ERRORS_ONLY: Final = 1


class Server(Protocol):
    """What is used of xllamacpp's server; it listens from construction until it is deleted."""

    listening_address: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, which ends the process; return 1 when serving was not possible."""
    return run(serve, RUNTIME.name, arguments)


def serve(spec: ServeSpec) -> NoReturn:
    """Check, load, prove with one token, announce, and wait for SIGTERM or SIGINT.

    Until the model is loaded a signal ends the process at once, as for any program.

    Raises `SourceError` for a damaged model file, `InvalidSpec` for a context the model cannot
    have, `LocalError` when memory is short, the extra is missing or the server does not answer.
    """
    header = read_model(spec.model_path)
    need = check_request(spec, header)
    check_memory(need, memory_available_bytes())
    server = start_server(spec, parameters)
    address = urlsplit(server.listening_address).netloc
    silence_library()
    prove_ready(address, spec.key, spec.alias)
    stay(address)


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


def start_server(spec: ServeSpec, fill: Callable[[Any, ServeSpec], Any]) -> Server:
    """Load the model and listen on a free port of the loopback address; returns when loaded.

    `fill` sets llama.cpp's parameters.

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
        server: Server = xllamacpp.Server(fill(xllamacpp.CommonParams(), spec))
    except (RuntimeError, MemoryError) as cause:
        raise LocalError(
            f"load {spec.model_path}: llama.cpp refused it (its words are above)",
            hint="it may be of a kind this llama.cpp does not know, or memory may be short",
        ) from cause
    return server


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
    body = {"model": alias, "prompt": "a", "max_tokens": 1, "cache_prompt": False}
    answer = prove(address, key, "/v1/completions", body)
    if answer.get("usage", {}).get("completion_tokens", 0) < 1:
        raise LocalError("try the model: it generated no token")


if __name__ == "__main__":
    sys.exit(main())
