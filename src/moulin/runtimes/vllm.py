"""Serves a model with vLLM, on GPUs or on a CPU: its own server as a child of this process.

    python -m moulin.runtimes.vllm --model DIRECTORY --alias NAME --context N --parallel N
        --threads N --key-file FILE [-- VLLM FLAGS]

The arguments and the contract are those of `program`; DIRECTORY is a checkpoint in the form of the
model hub. CUDA_VISIBLE_DEVICES says which GPUs are its own: without any it serves on the CPU. Flags
after `--` go to `vllm serve` as they are, after its own. What the server prints is kept in memory
until it serves, for the case that it does not, and nowhere afterwards; usage statistics are off.

vLLM is a tree of processes. Each dies with the one that started it, by the kernel's hand, so that
whichever is killed takes the memory of all with it; the shared memory they talk through loses its
name once they serve, for the same reason.

Reference: vLLM 0.32, `vllm serve`; prctl(2), PR_SET_PDEATHSIG.
"""

import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, NoReturn

from moulin.domain.checkpoint import CONFIG, architecture_of_config
from moulin.domain.errors import InvalidSpec, LocalError, SourceError
from moulin.domain.model import VLLM, Ability, Architecture, paged_cache_bytes
from moulin.domain.runtime import Runtime
from moulin.runtimes.program import (
    ServeSpec,
    announce,
    catch_stop,
    leave,
    prove,
    run,
    waiting_politely,
)
from moulin.runtimes.tree import TIED, Words, end, start, unname_shared_memory

RUNTIME: Final = Runtime(
    name=VLLM,
    title="text generation: vLLM, for checkpoints of the model hub",
    abilities=(Ability.GENERATE,),
    modules=("vllm",),
    lock="vllm.txt",
    size_bytes=3_100 * 10**6,
)
START_S: Final = 900
STOP_S: Final = 5
DEVICES_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"
# Of a GPU's memory; the rest is for what vLLM does not count, as its own default leaves it.
GPU_MEMORY_SHARE: Final = "0.9"
CACHE_VARIABLE: Final = "VLLM_CPU_KVCACHE_SPACE"
FOLDER_VARIABLE: Final = "MOULIN_ATTEMPT_DIR"
_POLL_S: Final = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, which ends the process; return 1 when serving was not possible."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    own, flags = given[:cut], given[cut + 1 :]
    return run(lambda spec: serve(spec, flags), RUNTIME.name, own)


def serve(spec: ServeSpec, flags: Sequence[str] = ()) -> NoReturn:
    """Start vLLM, prove it with one token, announce, and wait for a signal or its end.

    Raises `SourceError` for what is no checkpoint, `InvalidSpec` for a context it cannot have, and
    `LocalError` when vLLM is not installed, does not start or does not answer.
    """
    architecture = read_architecture(spec)
    # What a kill leaves in it then goes with the attempt.
    above = os.environ.get(FOLDER_VARIABLE) or None
    with tempfile.TemporaryDirectory(prefix="vllm-", dir=above) as name:
        folder, address = Path(name), f"127.0.0.1:{_free_port()}"
        devices = visible_devices(os.environ)
        argv = [*command(spec, architecture, address, devices), *flags]
        server = start(argv, environment(spec, folder, os.environ), folder)
        words = Words(server)
        stop_asked = catch_stop()
        try:
            _wait_for_health(server, address, words, stop_asked)
            body = {"model": spec.alias, "prompt": "a", "max_tokens": 1}
            prove(address, spec.key, "/v1/completions", body)
            words.forget()
            unname_shared_memory(server.pid)
            announce(address)
            _wait_for_end(server, stop_asked)
        finally:
            end(server, STOP_S)
    leave()


def read_architecture(spec: ServeSpec) -> Architecture:
    """Return the figures of the checkpoint.

    Raises `SourceError` when it is none, `InvalidSpec` for a context longer than it knows.
    """
    try:
        config = (spec.model_path / CONFIG).read_bytes()
    except OSError as cause:
        raise SourceError(
            f"serve {spec.model_path} with vLLM: it is no folder with a {CONFIG}",
            hint="`moulin runtime convert FILE.gguf DIRECTORY` makes one of a GGUF file",
        ) from cause
    found = architecture_of_config(config)
    if not 1 <= spec.context_tokens <= found.context_max_tokens:
        raise InvalidSpec(
            f"serve a context of {spec.context_tokens} tokens: "
            f"this model takes 1 to {found.context_max_tokens}"
        )
    return found


def visible_devices(variables: Mapping[str, str]) -> int:
    """Return how many GPUs this process was given.

    >>> visible_devices({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}), visible_devices({})
    (4, 0)
    """
    return len([part for part in variables.get(DEVICES_VARIABLE, "").split(",") if part.strip()])


def command(
    spec: ServeSpec, architecture: Architecture, address: str, devices: int
) -> tuple[str, ...]:
    """Return the argv of vLLM's own server; its key goes by the environment.

    On GPUs a model is split over all of them, and what its weights leave of their memory is cache;
    on a CPU the cache is what the context of so many requests takes.
    """
    host, _, port = address.rpartition(":")
    cache_bytes = paged_cache_bytes(architecture, spec.context_tokens, spec.parallel)
    place = (
        ("--tensor-parallel-size", str(devices), "--gpu-memory-utilization", GPU_MEMORY_SHARE)
        if devices
        # Compiling takes minutes of each start on a CPU.
        else ("--kv-cache-memory-bytes", str(cache_bytes), "--enforce-eager")
    )
    return (
        *(
            sys.executable,
            "-m",
            "vllm.entrypoints.cli.main",
            "serve",
            str(spec.model_path.absolute()),
        ),
        *("--host", host, "--port", port),
        *("--served-model-name", spec.alias, "--max-model-len", str(spec.context_tokens)),
        *("--max-num-seqs", str(spec.parallel), "--disable-uvicorn-access-log"),
        *place,
    )


def environment(spec: ServeSpec, folder: Path, base: Mapping[str, str]) -> Mapping[str, str]:
    """Return vLLM's environment: its key, no statistics, no hub, few CPU threads, and the hooks.

    VLLM_CPU_KVCACHE_SPACE is left out: it would come before the cache that was planned.
    """
    path = os.pathsep.join(filter(None, (str(write_hooks(folder)), base.get("PYTHONPATH", ""))))
    return {
        **{name: value for name, value in base.items() if name != CACHE_VARIABLE},
        **waiting_politely(base),
        "PYTHONPATH": path,
        # Its sockets lie where it is started; a whole path may be longer than a socket's can be.
        "VLLM_RPC_BASE_PATH": ".",
        "VLLM_API_KEY": spec.key,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(spec.threads),
    }


def write_hooks(folder: Path) -> Path:
    """Return a folder for the import path of every process of the tree.

    In it is what ties their lives together, and, where the wheel has another name, as for CPUs, the
    version that vLLM asks for.

    Raises `LocalError` when vLLM is not installed.
    """
    hooks = folder / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(TIED, encoding="ascii")
    if _version("vllm"):
        return hooks
    version = _version("vllm-cpu")
    if not version:
        raise LocalError("serve with vLLM: it is not installed", hint="moulin runtime install vllm")
    place = hooks / f"vllm-{version}+cpu.dist-info"
    place.mkdir()
    words = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    (place / "METADATA").write_text(words, encoding="ascii")
    return hooks


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_health(
    server: subprocess.Popen[bytes], address: str, words: Words, stop_asked: int
) -> None:
    host, _, port = address.rpartition(":")
    deadline_s = time.monotonic() + START_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        if server.poll() is not None:
            # Nothing was asked of it yet, so its words quote nobody.
            print(words.last(), file=sys.stderr)
            raise LocalError(f"start vLLM: it ended with status {server.returncode}")
        if time.monotonic() > deadline_s:
            raise LocalError(f"start vLLM: it did not listen within {START_S} s")
        if select.select([stop_asked], [], [], _POLL_S)[0]:
            raise LocalError("start vLLM: told to stop")


def _wait_for_end(server: subprocess.Popen[bytes], stop_asked: int) -> None:
    while not select.select([stop_asked], [], [], _POLL_S)[0]:
        if server.poll() is not None:
            raise LocalError(f"serve with vLLM: it ended with status {server.returncode}")


if __name__ == "__main__":
    sys.exit(main())
