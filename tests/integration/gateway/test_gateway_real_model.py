"""The gateway before llama.cpp itself: the client, the journal and the model agree on every token."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moulin.domain.snapshot import ReplicaView
from tests.integration.gateway.control_fake import ControlFake
from tests.integration.gateway.plant import Plant, model_view, snapshot
from tests.integration.runtimes.test_llm_serving import CONTEXT, KEY, PARALLEL, Replica, serving

pytestmark = pytest.mark.model

TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "Write one short sentence about the sea."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with serving(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def served(server: Replica, tmp_path: Path) -> Iterator[Plant]:
    view = ReplicaView(
        attempt="end_1.u0.g1",
        address=server.address,
        key=KEY,
        zone="z1",
        country="FR",
        country_basis="asserted by the operator",
        parallel_requests=PARALLEL,
    )
    model = model_view(view, name="tiny", context_tokens=CONTEXT)
    control = ControlFake(snapshot(model), {"lab": 10**12})
    control.start()
    plant = Plant(tmp_path, control)
    plant.start()
    yield plant
    plant.stop()
    control.stop()


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": MESSAGES, "max_tokens": 7, **fields}


def chunks(body: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in body.decode().splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_one_completion_is_counted_alike_whole_and_streamed(served: Plant) -> None:
    usage = served.post(asked(n=1, ignore_eos=True)).json["usage"]
    stream = served.post(asked(stream=True, stream_options={"include_usage": True}))
    streamed = chunks(stream.body)[-1]["usage"]
    assert usage["completion_tokens"] == 7
    assert streamed["prompt_tokens"] == usage["prompt_tokens"]
    counted = [(end.tokens_input, end.tokens_output, end.is_estimated) for end in served.ends(2)]
    assert counted == [
        (each["prompt_tokens"], each["completion_tokens"], False) for each in (usage, streamed)
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 2}),
        (TEXT, {"prompt": "The sea is", "n": 2}),
        (TEXT, {"prompt": ["The sea is", "The sky is"]}),
    ],
)
def test_each_completion_is_counted(
    served: Plant, server: Replica, path: str, fields: dict[str, Any], stream: bool
) -> None:
    body = {"model": "tiny", "max_tokens": 7, "ignore_eos": True, "stream": stream, **fields}
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = served.post({**body, **options}, path)
    assert answer.status == 200
    made = chunks(answer.body) if stream else [answer.json]
    assert {choice["index"] for each in made for choice in each["choices"]} == {0, 1}
    (usage,) = [each["usage"] for each in made if each.get("usage")]
    assert usage["completion_tokens"] == 14
    assert [end.tokens_output for end in served.ends(2)] == [7, 7]

    # Why they are asked for one by one: the model server counts the first alone. If this fails, it
    # counts all, and one request would do.
    status, own = server.ask(path, {**body, "stream_options": {"include_usage": True}})
    assert status == 200
    told = chunks(own) if stream else [json.loads(own)]
    assert {each["usage"]["completion_tokens"] for each in told if each.get("usage")} == {7}


CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "clock"}},
]
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_is_a_call(served: Plant, choice: Any, stream: bool) -> None:
    body = asked(tools=TOOLS, tool_choice=choice, max_tokens=60, temperature=0, stream=stream)
    answer = served.post(body)
    assert answer.status == 200, answer.body
    if stream:
        choices = [choice for each in chunks(answer.body) for choice in each["choices"]]
        deltas = [call for each in choices for call in each["delta"].get("tool_calls", ())]
        name = deltas[0]["function"]["name"]
        arguments = "".join(call["function"]["arguments"] for call in deltas)
        reason = choices[-1]["finish_reason"]
    else:
        (made,) = answer.json["choices"]
        (call,) = made["message"]["tool_calls"]
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        reason = made["finish_reason"]
    assert reason == "tool_calls"
    assert name in {"weather", "clock"}
    if choice is NAMED:
        assert name == "weather"
        assert json.loads(arguments)["city"] in {"Paris", "Rome"}


def test_a_schema_is_obeyed(served: Plant) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}}
    answer = served.post(asked(response_format=wanted, max_tokens=30)).json
    assert json.loads(answer["choices"][0]["message"]["content"])["city"] in {"Paris", "Rome"}


def test_earlier_calls_and_their_results_are_part_of_a_chat(served: Plant) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    answer = served.post({**asked(tools=TOOLS), "messages": [*MESSAGES, *turns]})
    assert answer.status == 200, answer.body


def test_log_probabilities_have_the_form_of_their_path(served: Plant) -> None:
    chat = served.post(asked(logprobs=True, top_logprobs=2, max_tokens=3)).json["choices"][0]
    assert [len(token["top_logprobs"]) for token in chat["logprobs"]["content"]] == [2, 2, 2]
    body = {"model": "tiny", "prompt": "The sea is", "logprobs": 2, "max_tokens": 3}
    text = served.post(body, TEXT).json["choices"][0]
    assert "".join(text["logprobs"]["tokens"]) == text["text"]
    assert text["logprobs"]["text_offset"][0] == 0
    assert [len(token) for token in text["logprobs"]["top_logprobs"]] == [2, 2, 2]
    streamed = [
        choice["logprobs"]
        for each in chunks(served.post({**body, "stream": True}, TEXT).body)
        for choice in each["choices"]
        if choice.get("logprobs")
    ]
    assert [len(each["tokens"]) for each in streamed] == [1, 1, 1]


def test_seeds_repeat_and_stops_stop(served: Plant) -> None:
    body = asked(seed=11, temperature=1.5, max_tokens=12)
    first, second = (served.post(body).json["choices"][0]["message"]["content"] for _ in range(2))
    assert first == second
    counting = {"model": "tiny", "prompt": "1, 2, 3, 4, 5, 6,", "max_tokens": 20, "temperature": 0}
    stopped = served.post({**counting, "stop": ["8"]}, TEXT).json["choices"][0]
    assert "8" not in stopped["text"]
    assert stopped["finish_reason"] == "stop"


def test_a_refusal_of_the_model_server_has_the_fields_clients_expect(served: Plant) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    refused = served.post(asked(response_format=wanted))
    assert refused.status == 400
    assert refused.json["error"].keys() == {"message", "type", "param", "code"}
    assert refused.json["error"]["code"] is None
