"""A checkpoint on vLLM through a real Moulin: deployed, called, adopted, killed, stopped.

Outside the usual run because of its size: `make conformance RUNTIME=vllm`.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from moulin.runtimes.tree import below
from tests.e2e.conftest import Shell
from tests.real_model import cache_directory
from tests.real_runtimes import checkpoint, packaged, runtimes_directory

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        os.environ.get("RUNTIME") != "vllm", reason="3 GB: make conformance RUNTIME=vllm"
    ),
]
GGUF, NAME, CONTEXT = "smollm2-135m-instruct", "tiny-on-vllm", 1024
DEPLOY_S = 900.0
SHARED = Path("/dev/shm")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Lyon"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class VllmShell(Shell):
    """A shell whose Moulin has time, and the models of the tests."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "MOULIN_MODELS": str(cache_directory() / "store")}

    def deploy(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command("deploy", *words, "--wait", str(DEPLOY_S)),
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=DEPLOY_S + 60,
        )

    def until(self, condition) -> None:
        deadline_s = time.monotonic() + DEPLOY_S
        while not condition():
            assert time.monotonic() < deadline_s, "it never came"
            time.sleep(0.2)


@dataclass
class Served:
    """A Moulin with one endpoint on vLLM, and a client of it."""

    shell: VllmShell
    client: openai.OpenAI
    facts: dict
    named_before: set[str]

    def endpoint(self) -> dict:
        return self.shell.json("show", NAME)

    def tree(self) -> dict[str, int]:
        """Return the processes of the replica by what they are."""
        found = {}
        for pid in self.shell.processes():
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"moulin.runtimes.vllm" in words:
                found["runtime"] = pid
        for pid in below(found["runtime"]) if found else ():
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            kinds = (b"EngineCore", b"Worker", b"resource_tracker", b"vllm.entrypoints")
            found[next((k.decode() for k in kinds if k in words), str(pid))] = pid
        return found

    def chat(self, **fields):
        asked = {"model": NAME, "messages": [{"role": "user", "content": "Say hello."}]}
        return self.client.chat.completions.with_raw_response.create(
            **{**asked, "max_tokens": 8, "temperature": 0, **fields}
        )

    def answers(self) -> bool:
        try:
            return bool(self.chat().parse().choices)
        except openai.APIError:
            return False


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])


def shared_names() -> set[str]:
    return {path.name for path in SHARED.iterdir() if path.name.startswith(("psm_", "sem.mp"))}


def stop_leaves_no_process_and_no_memory(served: Served) -> None:
    before = served.tree()
    stopped = served.shell.moulin("stop", NAME)
    assert stopped.returncode == 0, stopped.stderr
    served.shell.until(lambda: not any(map(is_alive, before.values())))
    assert not served.tree()
    # Others on this machine may share memory for a while; what was left here would stay.
    served.shell.until(lambda: shared_names() <= served.named_before)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    folder = checkpoint(GGUF)
    shell = VllmShell(tmp_path_factory.mktemp("vllm"))
    named_before = shared_names()
    try:
        _, facts = shell.up("--country", "FR")
        refused = shell.deploy(f"file:{folder}", "--name", NAME, "--runtime", "vllm")
        assert refused.returncode == 1
        assert "moulin runtime install vllm" in refused.stderr
        (shell.data / "runtimes").symlink_to(runtimes_directory())
        done = shell.deploy(
            f"file:{folder}", "--name", NAME, "--runtime", "vllm", "--context", str(CONTEXT)
        )
        assert done.returncode == 0, done.stderr + shell.moulin("logs", NAME).stdout
        known = json.loads((shell.data / "credentials.json").read_text("utf-8"))
        with openai.OpenAI(
            base_url=f"{known['gateway_url']}/v1",
            api_key=known["api_key"],
            max_retries=0,
            timeout=300,
        ) as client:
            found = Served(shell, client, facts, named_before)
            yield found
            # Here and not in a test, because tests come in any order.
            stop_leaves_no_process_and_no_memory(found)
    finally:
        shell.close()


def test_the_catalogue_names_the_runtime(served) -> None:
    [form] = served.shell.json("models", "show", NAME)["variants"]
    assert (form["runtime"], form["runtime_hint"], form["precision"]) == ("vllm", "", "BF16")
    rows = served.shell.json("models", "fit", NAME, "--context", str(CONTEXT))["rows"]
    assert {row["runtime"] for row in rows} == {"vllm"}
    assert "vllm" in served.shell.moulin("models", "show", NAME).stdout


def test_a_gguf_model_is_not_for_vllm_and_this_one_not_for_llama(served) -> None:
    packaged(GGUF)
    for words in (
        (GGUF, "--variant", "q4_1-packaged", "--runtime", "vllm"),
        (NAME, "--runtime", "llm"),
    ):
        refused = served.shell.moulin("deploy", *words)
        assert refused.returncode != 0
        assert "no form of it is for that runtime" in refused.stderr


def test_an_answer_has_its_receipt_with_energy_and_the_folders_digest(served) -> None:
    raw = served.chat(messages=[{"role": "user", "content": "What is the capital of France?"}])
    answer = raw.parse()
    assert answer.usage.completion_tokens == 8
    name = raw.headers["x-moulin-receipt"]
    served.shell.until(lambda: served.shell.moulin("receipt", "show", name).returncode == 0)
    receipt = served.shell.json("receipt", "show", name)
    quantities = receipt["usage"]["quantities"]
    assert quantities["tokens_output"] == 8
    assert quantities["tokens_input"] == answer.usage.prompt_tokens
    assert int(receipt["usage"]["energy_mj"]) > 0
    [form] = served.shell.json("models", "show", NAME)["variants"]
    assert f"sha256:{form['sha256']}" in json.dumps(receipt)


def test_a_stream_comes_in_pieces_and_says_its_usage(served) -> None:
    stream = served.client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "Count to ten."}],
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 1
    assert chunks[-1].usage.completion_tokens == 12


def test_an_answer_keeps_to_a_schema(served) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    said = served.chat(
        max_tokens=32,
        response_format={"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
    ).parse()
    assert json.loads(said.choices[0].message.content)["colour"] in ("red", "green")


def test_a_named_tool_is_called(served) -> None:
    choice = (
        served.chat(
            max_tokens=64,
            tools=[WEATHER],
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
            messages=[{"role": "user", "content": "How is the weather in Paris?"}],
        )
        .parse()
        .choices[0]
    )
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Lyon")


def test_a_replica_is_adopted_when_the_control_plane_is_killed(served) -> None:
    before = served.tree()
    assert {"runtime", "vllm.entrypoints", "EngineCore"} <= set(before)
    os.kill(int(served.facts["control_pid"]), signal.SIGKILL)
    served.shell.until(lambda: served.shell.moulin("status").returncode == 0)
    assert served.answers()
    assert served.tree() == before


def test_a_replica_that_drains_finishes_its_stream_and_then_holds_nothing(served) -> None:
    before = served.tree()
    stream = served.client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "Tell a long story about a mill."}],
        max_tokens=96,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [next(stream)]
    assert served.shell.moulin("scale", NAME, "0").returncode == 0
    chunks += list(stream)
    assert chunks[-1].usage.completion_tokens > 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    served.shell.until(lambda: not any(map(is_alive, before.values())))
    assert served.shell.moulin("scale", NAME, "1").returncode == 0
    served.shell.until(served.answers)
    assert not set(served.tree().values()) & set(before.values())


@pytest.mark.parametrize("member", ["EngineCore", "shim"])
def test_whichever_member_is_killed_nothing_is_left_and_it_comes_back(served, member) -> None:
    before = served.tree()
    os.kill(before[member] if member in before else parent_of(before["runtime"]), signal.SIGKILL)
    served.shell.until(lambda: not any(map(is_alive, before.values())))
    # Others on this machine may share memory for a while; what was left here would stay.
    served.shell.until(lambda: shared_names() <= served.named_before)
    served.shell.until(served.answers)
    assert not set(served.tree().values()) & set(before.values())
