"""Turns texts into vectors over HTTP: llama.cpp's own server over an encoder, in this process.

    python -m moulin.runtimes.embeddings --model PATH --alias NAME --context N --parallel N
        --threads N --key-file FILE

The arguments and the contract are those of `program`. Vectors are pooled as the model file says and
of length one, so that a product of two is their cosine. A text longer than the context is refused.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from moulin.domain.errors import LocalError
from moulin.domain.model import Ability
from moulin.domain.runtime import Runtime
from moulin.runtimes.llm import (
    check_memory,
    check_request,
    parameters,
    read_model,
    start_server,
)
from moulin.runtimes.program import (
    ServeSpec,
    memory_available_bytes,
    prove,
    run,
    silence_library,
    stay,
)

RUNTIME: Final = Runtime(
    name="embeddings",
    title="embeddings: llama.cpp's own server over an encoder",
    abilities=(Ability.EMBED,),
    modules=("xllamacpp",),
    extra="llm",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, which ends the process; return 1 when serving was not possible."""
    return run(serve, RUNTIME.name, arguments)


def serve(spec: ServeSpec) -> NoReturn:
    """Check, load, prove with one vector, announce, and wait for SIGTERM or SIGINT.

    Raises `SourceError` for a damaged model file, `InvalidSpec` for a context the model cannot
    have, `LocalError` when memory is short, the extra is missing or the server does not answer.
    """
    check_memory(check_request(spec, read_model(spec.model_path)), memory_available_bytes())
    server = start_server(spec, encoder_parameters)
    address = urlsplit(server.listening_address).netloc
    silence_library()
    answer = prove(address, spec.key, "/v1/embeddings", {"model": spec.alias, "input": "a"})
    if not answer.get("data") or not answer["data"][0].get("embedding"):
        raise LocalError("try the model: it gave no vector")
    stay(address)


def encoder_parameters(params: Any, spec: ServeSpec) -> Any:
    """Fill llama.cpp's parameters; `params` is a fresh `CommonParams`."""
    params = parameters(params, spec)
    params.embedding = True
    # An encoder reads a text at once: its batch is the whole context of one slot.
    params.n_batch = params.n_ubatch = spec.context_tokens
    return params


if __name__ == "__main__":
    sys.exit(main())
