"""The clients people have work unmodified: the stock `openai` and `mistralai` packages."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.gateway.plant import KEY, Plant
from tests.integration.gateway.replica_fake import ReplicaFake

openai = pytest.importorskip("openai")
mistral = pytest.importorskip("mistralai.client")


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
    with pytest.raises(openai.NotFoundError, match="no model of that name"):
        gpt.chat.completions.create(model="nope", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as bad:
        gpt.chat.completions.create(model="smol", messages=MESSAGES, n=2)
    assert (bad.value.param, bad.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.AuthenticationError):
        gpt.with_options(api_key="mk_wrong").models.list()
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


def test_mistral_errors(mistralai: Any) -> None:
    with pytest.raises(Exception, match="no model of that name"):
        mistralai.chat.complete(model="nope", messages=MESSAGES)
