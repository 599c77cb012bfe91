"""The answers clients get: models, JSON, streams, headers, and the records behind them."""

import json
from typing import Any

import pytest

from moulin.domain.snapshot import ProjectView
from moulin.ledger import receipt_id
from moulin.metering import request_usage_id
from tests.integration.gateway.control_fake import ControlFake
from tests.integration.gateway.plant import (
    CHAT,
    KEY,
    OTHER_KEY,
    Plant,
    chat_body,
    eventually,
    key_view,
    model_view,
    replica_view,
)
from tests.integration.gateway.replica_fake import ReplicaFake


def test_a_chat_is_answered_priced_and_journaled(plant: Plant, replica: ReplicaFake) -> None:
    answer = plant.chat()
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"] == "Paris."
    cost_neur = 5 * 100 + 3 * 300
    assert answer.headers["x-moulin-cost-eur"] == "0.000001400"
    assert answer.headers["x-moulin-energy-j"] == "0.065000"
    assert answer.headers["x-moulin-co2e-g"] == "0.000000650"
    assert answer.headers["x-moulin-figures"] == "provisional"
    assert answer.headers["x-moulin-zone"] == "z1"
    request = answer.headers["x-request-id"]
    assert answer.headers["x-moulin-receipt"] == receipt_id(request_usage_id(request))
    assert len(request) == 30

    (end,) = plant.ends(1)
    assert (end.request, end.project, end.model, end.replica, end.zone) == (
        request, "lab", "smol", "end_1.u0.g1", "z1",
    )  # fmt: skip
    assert (end.tokens_input, end.tokens_output, end.amount_neur) == (5, 3, cost_neur)
    assert (end.outcome, end.is_estimated) == ("completed", False)


def test_headers_say_how_good_energy_figures_are(
    plant: Plant, control: ControlFake, replica: ReplicaFake
) -> None:
    """From the first answer on: estimated, then the class and the uncertainty of what was metered."""

    def told(**view: Any) -> tuple[str, str, str]:
        control.publish(models=(model_view(replica_view(replica, **view)),))
        wanted = str(view.get("energy_class"))
        eventually(lambda: plant.chat().headers.get("x-moulin-energy-class", "None") == wanted)
        headers = plant.chat().headers
        found = [
            headers.get(f"x-moulin-energy-{name}", "") for name in ("class", "uncertainty", "j")
        ]
        return found[0], found[1], found[2]

    assert told(energy_class="estimated", energy_uncertainty_ppm=2_000_000) == (
        "estimated", "2.00", "0.065000",
    )  # fmt: skip
    streamed = plant.chat(stream=True).headers
    assert streamed["x-moulin-energy-class"] == "estimated"
    several = plant.chat(n=2).headers
    assert (several["x-moulin-energy-class"], several["x-moulin-energy-j"]) == (
        "estimated", "0.130000",
    )  # fmt: skip
    assert told(energy_class="D", energy_uncertainty_ppm=350_000) == ("D", "0.35", "0.065000")
    assert told(energy_uj_per_token_input=0, energy_uj_per_token_output=0) == ("", "", "")


def test_what_goes_to_the_replica(plant: Plant, replica: ReplicaFake) -> None:
    plant.chat(random_seed=7, safe_prompt=True, max_completion_tokens=9, user="x", temperature=0.5)
    body = replica.seen.bodies[0]
    assert body["seed"] == 7
    assert body["max_tokens"] == 9
    assert set(body) == {"model", "messages", "seed", "max_tokens", "temperature"}
    assert "authorization: Bearer replica-secret" in replica.seen.heads[0]
    assert KEY not in replica.seen.heads[0]
    plant.chat(stream=True)
    assert replica.seen.bodies[1]["stream_options"] == {"include_usage": True}
    assert replica.seen.bodies[1]["max_tokens"] == 64


def test_ignored_fields_are_named(plant: Plant) -> None:
    assert plant.chat(store=True, user="x").headers["x-moulin-ignored"] == "store, user"


def test_text_completions(plant: Plant, replica: ReplicaFake) -> None:
    answer = plant.post({"model": "smol", "prompt": ["a"]}, "/v1/completions")
    assert answer.json["choices"][0]["text"] == "Paris."
    assert "POST /v1/completions" in replica.seen.heads[0]


@pytest.mark.parametrize("wants_usage", [False, True])
def test_a_stream_keeps_its_order_and_shows_usage_only_when_asked(
    plant: Plant, wants_usage: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    answer = plant.chat(stream=True, **options)
    events = [event for event in answer.body.decode().split("\n\n") if event]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-moulin-receipt"].startswith("rcp_req_")
    chunks = [json.loads(event[6:]) for event in events if event.startswith("data: {")]
    words = [c["choices"][0]["delta"]["content"] for c in chunks if c["choices"]]
    assert words == ["w0 ", "w1 ", "w2 ", ""]
    assert [bool(c.get("usage")) for c in chunks].count(True) == wants_usage
    assert events[-1] == "data: [DONE]"
    assert events[-2].startswith(": moulin figures=provisional cost-eur=0.000001400")
    (end,) = plant.ends(1)
    assert (end.tokens_input, end.tokens_output, end.is_estimated) == (5, 3, False)


def test_models_are_those_the_key_may_use(plant: Plant, replica: ReplicaFake) -> None:
    view = replica_view(replica)
    plant.control.publish(
        keys=(
            key_view(models=("smol", "shared")),
            key_view(OTHER_KEY, id="key_2", project="other"),
        ),
        models=(
            model_view(view),
            model_view(name="shared", endpoint="end_2", project="ops", is_public=True),
            model_view(name="shared/2", endpoint="end_3", project="ops", is_public=True),
        ),
        projects=(
            ProjectView(name="lab", organisation="uni"),
            ProjectView(name="other", organisation="uni"),
        ),
    )
    eventually(lambda: plant.get("/v1/models", OTHER_KEY).status == 200)
    names = lambda key: [card["id"] for card in plant.get("/v1/models", key).json["data"]]
    assert names(KEY) == ["shared", "smol"]
    assert names(OTHER_KEY) == ["shared", "shared/2"]
    assert plant.get("/v1/models/shared%2F2", OTHER_KEY).json["id"] == "shared/2"
    assert plant.get("/v1/models/smol").json["max_context_length"] == 4096
    assert plant.get("/v1/models/smol", OTHER_KEY).status == 404
    assert plant.post(chat_body(), key=OTHER_KEY).status == 404


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "JSON"),
        (b"[]", "JSON object"),
        (chat_body(n_predict=100_000), "'n_predict' is not a known field"),
        (chat_body(n=99), "99 completions in one request are more than the 16 served"),
        (chat_body(max_tokens=0), "'max_tokens' must be"),
        (chat_body(messages=[]), "'messages' must be"),
        (chat_body(best_of=4), "'best_of' must be"),
        (
            chat_body(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
            "the parts served here",
        ),
        (b'{"model":"smol","messages":[{"role":"user","content":"\xff"}]}', "JSON"),
    ],
)
def test_what_cannot_be_read_is_refused_before_money_is_held(
    plant: Plant, replica: ReplicaFake, body: object, said: str
) -> None:
    answer = plant.post(body)
    assert answer.status == 400
    assert said in answer.json["error"]["message"]
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"].startswith("req_")
    assert replica.seen.bodies == []
    assert plant.chat().status == 200


def test_paths_and_methods(plant: Plant) -> None:
    assert plant.get("/v1/nothing").status == 404
    assert plant.get(CHAT).status == 405
    assert plant.post(b"{}", "/v1/models").status == 404
    assert plant.get("/healthz", "").json["status"] == "ok"
    plant.chat()
    text = plant.get("/metrics", "").body.decode()
    assert 'moulin_gateway_requests_total{model="smol",outcome="completed"} 1' in text
    assert 'moulin_gateway_tokens_total{model="smol",direction="output"} 3' in text
    assert plant.post(chat_body(), CHAT + "?api-version=1").status == 200


def test_prompt_and_answer_leave_no_trace(plant: Plant, replica: ReplicaFake) -> None:
    """Zero retention: a canary in prompt and answer is nowhere but with replica and client."""
    canary = "canary-7f3a9c"
    replica.behaviour.text = canary + "-answer"
    body = chat_body(messages=[{"role": "user", "content": canary}])
    assert canary in plant.post(body).body.decode()
    plant.post({**body, "stream": True})
    replica.behaviour.status = 500
    assert canary not in plant.post(body).body.decode()
    assert canary not in plant.post({**body, "n": 99}).body.decode()
    plant.post((json.dumps(body)[:-1] + canary).encode())
    assert len(plant.ends(3)) == 3
    metrics = plant.get("/metrics").body.decode()
    kept = [path.read_text("latin-1") for path in plant.data.rglob("*") if path.is_file()]
    assert any('"kind":"end"' in text for text in kept)
    for text in (metrics, *kept):
        assert canary not in text
        assert KEY not in text
