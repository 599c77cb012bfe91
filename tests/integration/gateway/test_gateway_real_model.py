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
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 2}, "n"),
        (TEXT, {"prompt": "The sea is", "n": 2}, "n"),
        (TEXT, {"prompt": ["The sea is", "The sky is"]}, "prompt"),
    ],
)
def test_more_than_one_completion_is_refused_because_it_is_not_counted(
    served: Plant, server: Replica, path: str, fields: dict[str, Any], param: str, stream: bool
) -> None:
    body = {"model": "tiny", "max_tokens": 7, "ignore_eos": True, "stream": stream, **fields}
    refused = served.post(body, path)
    assert refused.status == 400
    error = refused.json["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "not supported" in error["message"]

    # What the model server itself makes of it. If this fails, it counts now, and may be served.
    status, answer = server.ask(path, {**body, "stream_options": {"include_usage": True}})
    assert status == 200
    made = chunks(answer) if stream else [json.loads(answer)]
    assert {choice["index"] for each in made for choice in each["choices"]} == {0, 1}
    assert {each["usage"]["completion_tokens"] for each in made if each.get("usage")} == {7}
