"""The clients people have work unmodified: the stock `openai` and `mistralai` packages."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from moulin.identity.passes import make_pass
from tests.integration.gateway.plant import KEY, PEPPER, Plant, eventually, model_view, replica_view
from tests.integration.gateway.replica_fake import ReplicaFake

openai = pytest.importorskip("openai")
mistral = pytest.importorskip("mistralai.client")
mistral_errors = pytest.importorskip("mistralai.client.errors")

CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture
def gpt(plant: Plant) -> Iterator[Any]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{plant.port}/v1", api_key=KEY, max_retries=0
    ) as client:
        yield client


@pytest.fixture
def mistralai(plant: Plant) -> Iterator[Any]:
    with mistral.Mistral(server_url=f"http://127.0.0.1:{plant.port}", api_key=KEY) as client:
        yield client


MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def test_openai_chat_and_models(gpt: Any) -> None:
    assert [model.id for model in gpt.models.list()] == ["smol"]
    assert gpt.models.retrieve("smol").owned_by == "lab"
    raw = gpt.chat.completions.with_raw_response.create(model="smol", messages=MESSAGES, seed=1)
    assert raw.headers["x-moulin-figures"] == "provisional"
    answer = raw.parse()
    assert answer.choices[0].message.content == "Paris."
    assert answer.usage.total_tokens == 8
    assert gpt.completions.create(model="smol", prompt="The capital").choices[0].text == "Paris."


def test_openai_streams(gpt: Any) -> None:
    words: list[str] = []
    usage: Any = None
    with gpt.chat.completions.create(
        model="smol", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ) as stream:
        for chunk in stream:
            words += [choice.delta.content for choice in chunk.choices]
            usage = chunk.usage or usage
    assert "".join(words) == "w0 w1 w2 "
    assert usage.total_tokens == 8
    for chunk in gpt.chat.completions.create(model="smol", messages=MESSAGES, stream=True):
        assert chunk.choices


def test_openai_errors_have_their_classes(gpt: Any, plant: Plant) -> None:
    with pytest.raises(openai.NotFoundError, match="no model of that name") as unknown:
        gpt.chat.completions.create(model="nope", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        gpt.chat.completions.create(model="smol", messages=MESSAGES, n=99)
    assert (bad.value.param, bad.value.type) == ("n", "invalid_request_error")
    assert bad.value.code == "integer_above_max_value"
    with pytest.raises(openai.BadRequestError) as bad:
        gpt.chat.completions.create(model="smol", messages=MESSAGES, extra_body={"n_predict": 5})
    assert (bad.value.param, bad.value.code) == ("n_predict", "unknown_parameter")
    with pytest.raises(openai.AuthenticationError, match="no valid API key") as stranger:
        gpt.with_options(api_key="mk_wrong").models.list()
    assert stranger.value.code == "invalid_api_key"
    plant.control.budget_left["lab"] = 0
    with pytest.raises(openai.APIStatusError) as refused:
        gpt.chat.completions.create(model="smol", messages=MESSAGES)
    assert refused.value.status_code == 402
    assert refused.value.code == "budget_exceeded"


def test_mistral_chat_models_and_streams(mistralai: Any, replica: ReplicaFake) -> None:
    assert [model.id for model in mistralai.models.list().data] == ["smol"]
    answer = mistralai.chat.complete(
        model="smol", messages=MESSAGES, random_seed=3, safe_prompt=True, max_tokens=9
    )
    assert answer.choices[0].message.content == "Paris."
    assert answer.usage.completion_tokens == 3
    assert replica.seen.bodies[0]["seed"] == 3
    words, usage = [], None
    for event in mistralai.chat.stream(model="smol", messages=MESSAGES):
        words += [choice.delta.content for choice in event.data.choices]
        usage = event.data.usage or usage
    assert "".join(words) == "w0 w1 w2 "
    assert usage is not None
    assert usage.total_tokens == 8


def test_openai_tools(gpt: Any, replica: ReplicaFake) -> None:
    replica.behaviour.text = f"```json\n{CALL}\n```"
    answer = gpt.chat.completions.create(model="smol", messages=MESSAGES, tools=[TOOL])
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert replica.seen.bodies[-1]["tool_choice"] == "none"
    messages = [
        *MESSAGES,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "1"},
    ]
    gpt.chat.completions.create(model="smol", messages=messages, tools=[TOOL])
    sent = replica.seen.bodies[-1]["messages"]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == call.function.arguments


def test_openai_tools_streamed(gpt: Any, replica: ReplicaFake) -> None:
    replica.behaviour.words = ("I look. ", "``", "`json\n", CALL[:9], CALL[9:], "\n```")
    with gpt.chat.completions.stream(
        model="smol", messages=MESSAGES, tools=[TOOL], stream_options={"include_usage": True}
    ) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look. ")
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Paris"}')
    assert call.id.startswith("call_")
    assert answer.usage.total_tokens == 8


def test_openai_several_choices(gpt: Any, plant: Plant, replica: ReplicaFake) -> None:
    raw = gpt.chat.completions.with_raw_response.create(
        model="smol", messages=MESSAGES, n=3, seed=5
    )
    answer = raw.parse()
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.total_tokens == 24
    assert sorted(body["seed"] for body in replica.seen.bodies) == [5, 6, 7]
    assert all("n" not in body for body in replica.seen.bodies)
    receipts = raw.headers["x-moulin-receipt"].split(", ")
    assert len(set(receipts)) == 3
    assert {f"rcp_{end.request}" for end in plant.ends(3)} == set(receipts)
    assert float(raw.headers["x-moulin-cost-eur"]) == pytest.approx(3 * 1.4e-6)
    texts = gpt.completions.create(model="smol", prompt=["a", "b"]).choices
    assert [choice.text for choice in texts] == ["Paris.", "Paris."]


def test_openai_several_choices_streamed(gpt: Any, plant: Plant) -> None:
    words = {0: "", 1: ""}
    usages, ids = [], set()
    for chunk in gpt.chat.completions.create(
        model="smol", messages=MESSAGES, n=2, stream=True, stream_options={"include_usage": True}
    ):
        ids.add(chunk.id)
        for choice in chunk.choices:
            words[choice.index] += choice.delta.content or ""
        usages += [chunk.usage.total_tokens] if chunk.usage else []
    assert words == {0: "w0 w1 w2 ", 1: "w0 w1 w2 "}
    assert (usages, len(ids)) == ([16], 1)
    assert len(plant.ends(2)) == 2


def test_one_failed_choice_is_told_and_frees_the_others(
    gpt: Any, plant: Plant, replica: ReplicaFake
) -> None:
    replica.behaviour.closes_after_events = 1
    with pytest.raises(openai.APIError, match="finish this answer"):
        for _ in gpt.chat.completions.create(model="smol", messages=MESSAGES, n=2, stream=True):
            pass
    assert {end.outcome for end in plant.ends(2)} <= {"upstream_failed", "client_disconnected"}
    replica.behaviour.status = 400
    with pytest.raises(openai.BadRequestError) as refused:
        gpt.chat.completions.create(model="smol", messages=MESSAGES, n=2)
    assert (refused.value.code, refused.value.type) == (None, "x")


def test_parameters_may_be_dropped(gpt: Any, replica: ReplicaFake) -> None:
    raw = gpt.chat.completions.with_raw_response.create(
        model="smol",
        messages=MESSAGES,
        extra_body={"n_predict": 5, "mirostat": 2},
        extra_headers={"x-moulin-drop-params": "true"},
    )
    assert raw.headers["x-moulin-ignored"] == "mirostat, n_predict"
    assert "n_predict" not in replica.seen.bodies[-1]


def test_mistral_tools(mistralai: Any, replica: ReplicaFake) -> None:
    replica.behaviour.text = CALL
    answer = mistralai.chat.complete(
        model="smol", messages=MESSAGES, tools=[TOOL], tool_choice="any"
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, len(call.id)) == ("weather", 9)
    assert call.id.isalnum()
    assert answer.choices[0].finish_reason == "tool_calls"
    replica.behaviour.words = (CALL[:9], CALL[9:])
    found: list[Any] = []
    reasons = []
    for event in mistralai.chat.stream(model="smol", messages=MESSAGES, tools=[TOOL]):
        for choice in event.data.choices:
            found += choice.delta.tool_calls or []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert [call.function.arguments for call in found] == ['{"city": "Paris"}']
    assert reasons == ["tool_calls"]


def test_mistral_fills_in(mistralai: Any, plant: Plant, replica: ReplicaFake) -> None:
    with pytest.raises(mistral_errors.HTTPValidationError, match="cannot fill in"):
        mistralai.fim.complete(model="smol", prompt="a", suffix="b")
    marks = ("<p>", "<s>", "<m>")
    plant.control.publish(models=(model_view(replica_view(replica), infill=marks),))
    eventually(lambda: mistralai.models.retrieve(model_id="smol").capabilities.completion_fim)
    answer = mistralai.fim.complete(model="smol", prompt="a", suffix="b", random_seed=1)
    assert answer.choices[0].message.content == "Paris."
    assert replica.seen.bodies[-1]["prompt"] == "<p>a<s>b<m>"


def test_lines_of_mistrals_batches_fill_in(plant: Plant, replica: ReplicaFake) -> None:
    marks = ("<p>", "<s>", "<m>")
    plant.control.publish(models=(model_view(replica_view(replica), infill=marks),))
    path = "/v1/batch-lines/batch_1.0/v1/fim/completions"
    body = {"model": "smol", "prompt": "a", "suffix": "b", "max_tokens": 8}
    own = make_pass(PEPPER, "key_1")
    eventually(lambda: plant.post(body, path=path, key=own).status == 200)
    answer = plant.post(body, path=path, key=own)
    assert answer.json["choices"][0]["message"]["content"] == "Paris."
    assert replica.seen.bodies[-1]["prompt"] == "<p>a<s>b<m>"
    assert plant.post(body, path=path).status == 404


def test_mistral_errors(mistralai: Any, plant: Plant) -> None:
    with pytest.raises(mistral_errors.SDKError, match="no model of that name") as unknown:
        mistralai.chat.complete(model="nope", messages=MESSAGES)
    assert json.loads(unknown.value.body)["code"] == "model_not_found"
    with pytest.raises(mistral_errors.HTTPValidationError) as refused:
        mistralai.chat.complete(model="smol", messages=MESSAGES, temperature=9)
    assert refused.value.data.detail[0].loc == ["body", "temperature"]
    address = f"http://127.0.0.1:{plant.port}"
    with (
        mistral.Mistral(server_url=address, api_key="mk_wrong") as stranger,
        pytest.raises(mistral_errors.SDKError) as unauthenticated,
    ):
        stranger.chat.complete(model="smol", messages=MESSAGES)
    assert unauthenticated.value.status_code == 401
    assert json.loads(unauthenticated.value.body)["object"] == "error"
