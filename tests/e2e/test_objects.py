"""Files, batches and responses through a real Moulin with the stock clients, to receipts."""

import io
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Shell
from tests.real_model import cache_directory, smollm2

openai = pytest.importorskip("openai")
mistralai = pytest.importorskip("mistralai.client")
pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "Say one word."}]
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city now",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class ModelShell(Shell):
    """A shell whose Moulin finds the tests' model."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "MOULIN_MODELS": str(cache_directory() / "store")}


@dataclass
class Served:
    """A Moulin that serves the small model, and stock clients of it."""

    shell: Shell
    gpt: Any
    mistral: Any

    def receipts(self) -> list[dict[str, Any]]:
        """Return all receipts of the project, oldest first."""
        known = json.loads((self.shell.data / "credentials.json").read_text("utf-8"))
        bearer = {"authorization": f"Bearer {known['api_key']}"}
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next": ""}
        with httpx.Client(base_url=known["control_url"], headers=bearer, timeout=20) as client:
            while not found or page["next"]:
                asked = {"limit": 1000, "cursor": page["next"]}
                page = client.get("/api/v1/receipts", params=asked).raise_for_status().json()
                found += page["items"]
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    smollm2()
    shell = ModelShell(tmp_path_factory.mktemp("objects"))
    try:
        shell.up("--country", "FR")
        done = shell.moulin("deploy", MODEL)
        assert done.returncode == 0, done.stderr
        known = json.loads((shell.data / "credentials.json").read_text("utf-8"))
        url, key = known["gateway_url"], known["api_key"]
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=2) as gpt,
            mistralai.Mistral(server_url=url, api_key=key) as mistral,
        ):
            yield Served(shell, gpt, mistral)
    finally:
        shell.close()


def lines(count: int, **more: Any) -> bytes:
    asked = [
        {
            "custom_id": f"q{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": QUESTION, "max_tokens": 4, "seed": 1, **more},
        }
        for number in range(count)
    ]
    return b"".join(json.dumps(each).encode() + b"\n" for each in asked)


def upload(served: Served, data: bytes) -> str:
    return str(served.gpt.files.create(file=("questions.jsonl", data), purpose="batch").id)


def ended(served: Served, name: str) -> Any:
    """Wait until a batch is final."""
    deadline_s = time.monotonic() + 120
    while True:
        batch = served.gpt.batches.retrieve(name)
        if batch.status in {"completed", "failed", "cancelled", "expired"}:
            return batch
        assert time.monotonic() < deadline_s, batch
        time.sleep(0.2)


def read(served: Served, name: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in served.gpt.files.content(name).text.splitlines()]


def test_files_live_and_go(served: Served) -> None:
    data = os.urandom(9_000_000).hex().encode()  # more than any body that is held in memory
    made = served.gpt.files.create(file=("big.bin", io.BytesIO(data)), purpose="user_data")
    assert (made.bytes, made.filename, made.purpose) == (len(data), "big.bin", "user_data")
    assert made.id in [each.id for each in served.gpt.files.list(purpose="user_data")]
    assert served.gpt.files.content(made.id).content == data
    assert served.gpt.files.delete(made.id).deleted
    assert not (served.shell.data / "objects" / made.id).exists()
    with pytest.raises(openai.NotFoundError):
        served.gpt.files.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="purpose"):
        served.gpt.files.create(file=("a", b"x"), purpose="no such purpose")


def test_a_batch_is_answered_at_half_the_price(served: Served) -> None:
    wrong = {"custom_id": "bad", "body": {"model": "no-such-model", "messages": QUESTION}}
    name = upload(served, lines(3) + json.dumps(wrong).encode() + b"\n")
    batch = served.gpt.batches.create(
        input_file_id=name,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"for": "a test"},
    )
    assert batch.metadata == {"for": "a test"}
    batch = ended(served, batch.id)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (4, 3, 1)
    good, bad = read(served, batch.output_file_id), read(served, batch.error_file_id)
    assert [each["custom_id"] for each in good] == ["q0", "q1", "q2"]
    assert [each["response"]["status_code"] for each in good] == [200, 200, 200]
    assert bad[0]["custom_id"] == "bad"
    assert bad[0]["response"]["status_code"] == 404
    receipt = served.shell.json
    for number, each in enumerate(good):
        usage = each["response"]["body"]["usage"]
        shown = f"rcp_{each['response']['request_id']}"
        served.shell.until(
            lambda shown=shown: served.shell.moulin("receipt", "show", shown).returncode == 0
        )
        found = receipt("receipt", "show", shown)
        assert found["usage"]["line"] == f"{batch.id}.{number}"
        assert found["usage"]["quantities"]["tokens_output"] == usage["completion_tokens"]
        for line in found["charge"]["lines"]:
            assert line["factor_ppm"] == 500_000
            whole = int(line["quantity"]) * int(line["unit_price_neur"])
            assert 2 * int(line["per"]) * int(line["amount_neur"]) == whole


def test_a_malformed_batch_fails_and_says_where(served: Served) -> None:
    name = upload(served, lines(1) + b"nonsense\n" + lines(1))
    batch = served.gpt.batches.create(
        input_file_id=name, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = ended(served, batch.id)
    assert batch.status == "failed"
    found = [(each.line, each.code) for each in batch.errors.data]
    assert found == [(2, "invalid_json_line"), (3, "duplicate_custom_id")]


def test_a_cancelled_batch_keeps_what_is_done(served: Served) -> None:
    name = upload(served, lines(400, max_tokens=16))
    batch = served.gpt.batches.create(
        input_file_id=name, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while not served.gpt.batches.retrieve(batch.id).request_counts.completed:
        time.sleep(0.1)
    assert served.gpt.batches.cancel(batch.id).status in {"cancelling", "cancelled"}
    batch = ended(served, batch.id)
    assert batch.status == "cancelled"
    done = read(served, batch.output_file_id)
    assert len(done) == batch.request_counts.completed
    assert 0 < len(done) < 400


def test_commands_carry_a_file_out_and_fetch_what_came(served: Served, tmp_path: Path) -> None:
    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    wrong = {"custom_id": "bad", "body": {"model": "no-such-model", "messages": QUESTION}}
    questions.write_bytes(lines(2) + json.dumps(wrong).encode() + b"\n")
    moulin = served.shell.moulin
    run = moulin("batch", "run", str(questions), "--follow", "--output", str(answers))
    assert run.returncode == 0, run.stderr
    assert "completed: 3 of 3 done, 1 failed" in run.stderr
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [each["custom_id"] for each in found] == ["q0", "q1"]
    (batch, *_) = served.shell.json("batch", "list", "--limit", "1")["items"]
    assert batch["state"] == "completed"
    assert moulin("batch", "results", batch["id"]).stdout == answers.read_text()
    errors = moulin("batch", "results", batch["id"], "--errors")
    assert json.loads(errors.stdout)["custom_id"] == "bad"
    (name,) = batch["input_files"]
    assert served.shell.json("files", "show", name)["name"] == "questions.jsonl"
    copy = tmp_path / "copy.jsonl"
    told = served.shell.json("files", "download", name, "--output", str(copy))
    assert told["size_bytes"] == str(copy.stat().st_size)
    assert copy.read_bytes() == questions.read_bytes()
    assert moulin("batch", "delete", batch["id"]).returncode == 0
    assert moulin("files", "delete", name).returncode == 0
    gone = moulin("batch", "show", batch["id"])
    assert gone.returncode == 1
    assert batch["id"] in gone.stderr


def test_users_are_held_to_their_limit_and_named_nowhere(served: Served) -> None:
    shell, name = served.shell, "ada.lovelace@example.org"
    issued = shell.json(
        "keys",
        "create",
        "forum",
        "--role",
        "inference",
        "--user-tokens",
        "500",
        "--user-per",
        "day",
    )
    assert "500 tokens per day for each user" in shell.moulin("keys", "list").stdout
    gpt = served.gpt.with_options(api_key=issued["secret"])

    def ask(user: str) -> int:
        answer = gpt.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=4, user=user
        )
        return int(answer.usage.total_tokens)

    used, refusal = 0, None
    while refusal is None:
        try:
            used += ask(name)
        except openai.APIStatusError as error:
            refusal = error
    assert refusal.status_code == 402
    assert f"user {name} has " in refusal.message
    assert 0 < used <= 500
    other = ask("grace")

    def told() -> list[int]:
        return sorted(
            sum(int(n) for n in each["quantities"].values())
            for each in shell.json("usage", "--by", "user")["items"]
        )

    shell.until(lambda: told() == sorted([used, other]))
    (view,) = shell.json("keys", "spend", "--user", name)["items"]
    assert (int(view["used"]), view["scope"]) == (used, "key_user")
    for path in shell.data.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert name.encode() not in path.read_bytes(), path


def test_kills_cost_nobody_a_line(served: Served) -> None:
    count = 30
    name = upload(served, lines(count, max_tokens=8))
    batch = served.gpt.batches.create(
        input_file_id=name, endpoint="/v1/chat/completions", completion_window="24h"
    )
    run = served.shell.data / "run.json"
    for victim in ("gateway", "control"):
        while not served.gpt.batches.retrieve(batch.id).request_counts.completed:
            time.sleep(0.1)
        os.kill(json.loads(run.read_text())[victim]["pid"], signal.SIGKILL)
        served.shell.until(lambda: is_back(served))
    batch = ended(served, batch.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", count)
    assert len(read(served, batch.output_file_id)) == count
    served.shell.until(lambda: len(charged(served, batch.id)) == count)
    # Every line is charged, and once: its other receipts, if any, cost nothing.
    assert all(len(each) == 1 for each in charged(served, batch.id).values())


def charged(served: Served, batch: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for receipt in served.receipts():
        line = receipt["usage"]["line"]
        if line.startswith(batch) and int(receipt["charge"]["amount_neur"]):
            found.setdefault(line, []).append(receipt["id"])
    return found


def is_back(served: Served) -> bool:
    try:
        served.gpt.files.list(limit=1)
    except openai.OpenAIError:
        return False
    return True


def test_mistral_files_and_jobs(served: Served) -> None:
    asked = [
        {"custom_id": str(n), "body": {"messages": QUESTION, "max_tokens": 3}} for n in range(2)
    ]
    data = b"".join(json.dumps(each).encode() + b"\n" for each in asked)
    made = served.mistral.files.upload(
        file={"file_name": "ask.jsonl", "content": data}, purpose="batch"
    )
    assert made.id in [each.id for each in served.mistral.files.list().data]
    job = served.mistral.batch.jobs.create(
        input_files=[made.id], endpoint="/v1/chat/completions", model=MODEL, metadata={"a": "b"}
    )
    served.shell.until(lambda: served.mistral.batch.jobs.get(job_id=job.id).status == "SUCCESS")
    job = served.mistral.batch.jobs.get(job_id=job.id)
    assert (job.total_requests, job.succeeded_requests, job.metadata) == (2, 2, {"a": "b"})
    content = served.mistral.files.download(file_id=job.output_file).read()
    assert [json.loads(text)["custom_id"] for text in content.splitlines()] == ["0", "1"]
    inline = served.mistral.batch.jobs.create(
        requests=[{"custom_id": "x", "body": {"messages": QUESTION, "max_tokens": 3}}],
        endpoint="/v1/chat/completions",
        model=MODEL,
    )
    assert inline.id in [each.id for each in served.mistral.batch.jobs.list().data]
    infill = served.mistral.batch.jobs.create(
        requests=[{"custom_id": "f", "body": {"prompt": "def f(", "suffix": "return x"}}],
        endpoint="/v1/fim/completions",
        model=MODEL,
    )
    ends = {"SUCCESS", "FAILED"}
    served.shell.until(lambda: served.mistral.batch.jobs.get(job_id=infill.id).status in ends)
    infill = served.mistral.batch.jobs.get(job_id=infill.id)
    assert (infill.total_requests, infill.failed_requests) == (1, 1)
    why = served.mistral.files.download(file_id=infill.error_file).read()
    assert b"cannot fill in" in why, "this model has no marks for it"
    long = b"".join(data.replace(b'"custom_id": "', b'"custom_id": "%d-' % n) for n in range(200))
    many = served.mistral.files.upload(file={"file_name": "m", "content": long}, purpose="batch")
    job = served.mistral.batch.jobs.create(
        input_files=[many.id], endpoint="/v1/chat/completions", model=MODEL
    )
    stopped = served.mistral.batch.jobs.cancel(job_id=job.id)
    assert stopped.status in {"CANCELLATION_REQUESTED", "CANCELLED"}
    assert served.mistral.files.delete(file_id=made.id).deleted


def test_a_response_and_its_stream(served: Served) -> None:
    answer = served.gpt.responses.create(
        model=MODEL, input="Say hello.", instructions="Be short.", max_output_tokens=12
    )
    assert answer.output_text
    assert answer.usage.output_tokens > 0
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        served.gpt.responses.retrieve(answer.id)
    with served.gpt.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=6) as stream:
        events = list(stream)
    kinds, final = [event.type for event in events], events[-1].response
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] in {"response.completed", "response.incomplete"}
    assert final.output_text
    assert final.usage.output_tokens > 0


def test_a_stored_response_is_read_continued_and_deleted(served: Served) -> None:
    first = served.gpt.responses.create(
        model=MODEL, input="My name is Ada.", max_output_tokens=8, store=True
    )
    assert first.store
    assert served.gpt.responses.retrieve(first.id).output_text == first.output_text
    items = served.gpt.responses.input_items.list(first.id).data
    assert items[0].content[0].text == "My name is Ada."
    second = served.gpt.responses.create(
        model=MODEL,
        input="What is my name?",
        previous_response_id=first.id,
        max_output_tokens=8,
        store=True,
        stream=True,
    )
    last = list(second)[-1].response
    assert last.previous_response_id == first.id
    assert last.usage.input_tokens > first.usage.input_tokens
    assert len(served.gpt.responses.input_items.list(last.id).data) == 3
    for name in (first.id, last.id):
        served.gpt.responses.delete(name)
        with pytest.raises(openai.NotFoundError):
            served.gpt.responses.retrieve(name)


def test_a_response_calls_a_function(served: Served) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "input": "What is the weather in Paris?",
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "get_weather"},
        "max_output_tokens": 200,
        "temperature": 0,
    }
    answer = served.gpt.responses.create(**asked)
    call = answer.output[0]
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert set(json.loads(call.arguments)) == {"city"}
    with served.gpt.responses.stream(**asked) as stream:
        events = list(stream)
    kinds, final = [event.type for event in events], events[-1].response
    assert "response.function_call_arguments.done" in kinds
    assert final.output[0].name == "get_weather"
    told = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    after = served.gpt.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": "Weather?"}, call.model_dump(), told],
        max_output_tokens=8,
    )
    assert after.status in {"completed", "incomplete"}


def test_what_responses_do_not_serve_is_named(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        served.gpt.responses.create(model=MODEL, input="hi", tools=[{"type": "web_search_preview"}])
    assert refused.value.param == "tools"
    with pytest.raises(openai.NotFoundError) as missing:
        served.gpt.responses.create(model=MODEL, input="hi", previous_response_id="resp_none")
    assert missing.value.param == "previous_response_id"
