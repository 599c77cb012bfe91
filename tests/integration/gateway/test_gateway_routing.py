"""Where requests go: countries, circuits, other models, other names."""

import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from moulin.domain.snapshot import AliasTarget, AliasView, ModelView, ReplicaView
from tests.integration.gateway.plant import (
    CHAT,
    KEY,
    Answer,
    Plant,
    chat_body,
    eventually,
    key_view,
    model_view,
    replica_view,
)
from tests.integration.gateway.replica_fake import ReplicaFake

NS = 10**9


@pytest.fixture
def other() -> Iterator[ReplicaFake]:
    fake = ReplicaFake()
    fake.start()
    yield fake
    fake.close()


def publish(plant: Plant, *models: ModelView, **changes: object) -> None:
    plant.control.publish(models=models, **changes)
    version = plant.control.snapshot.version
    eventually(lambda: plant.get("/healthz").json["snapshot"] == version)


def in_two_countries(first: ReplicaFake, second: ReplicaFake) -> tuple[ReplicaView, ReplicaView]:
    return (
        replica_view(first, "end_1.u0.g1", zone="z-fr"),
        replica_view(second, "end_1.u1.g1", zone="z-us", country="US"),
    )


def chat_from(plant: Plant, where: str, **fields: object) -> Answer:
    headers = {"authorization": f"Bearer {KEY}", "x-moulin-where": where}
    return plant._call("POST", CHAT, json.dumps(chat_body(**fields)).encode(), headers)


def chats(plant: Plant, count: int, **fields: object) -> list[Answer]:
    """Send chats that begin differently, so that no replica is preferred for all."""
    return [
        plant.chat(messages=[{"role": "user", "content": f"question {number}"}], **fields)
        for number in range(count)
    ]


def zones_of(answers: list[Answer]) -> set[str]:
    return {answer.headers["x-moulin-zone"] for answer in answers}


def test_a_request_may_narrow_where_it_is_served_and_never_widen(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    publish(plant, model_view(*in_two_countries(replica, other)))
    assert {chat_from(plant, "US").headers["x-moulin-zone"] for _ in range(8)} == {"z-us"}
    assert {chat_from(plant, "fr, SE").headers["x-moulin-zone"] for _ in range(8)} == {"z-fr"}
    assert zones_of(chats(plant, 12)) == {"z-fr", "z-us"}
    refused = chat_from(plant, "SE")
    assert (refused.status, "this request" in refused.json["error"]["message"]) == (403, True)
    assert chat_from(plant, "France").status == 400
    assert chat_from(plant, "").status == 400
    publish(
        plant, model_view(*in_two_countries(replica, other)), keys=(key_view(countries=("FR",)),)
    )
    assert chat_from(plant, "US").status == 403
    assert chat_from(plant, "FR,US").headers["x-moulin-zone"] == "z-fr"


def test_a_dead_replica_at_home_sends_nothing_abroad(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    views = in_two_countries(replica, other)
    publish(plant, model_view(*views), keys=(key_view(countries=("FR",)),))
    replica.stop()
    assert {plant.chat().status for _ in range(5)} == {502}
    assert other.seen.bodies == []
    ends = plant.ends(5)
    assert {end.amount_neur for end in ends} == {0}
    replica.start()
    eventually(lambda: plant.chat().status == 200)


def test_an_open_circuit_is_tried_again_and_closes(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    publish(plant, model_view(*in_two_countries(replica, other)))
    other.stop()
    assert {answer.status for answer in chats(plant, 12)} == {200}
    retries = "moulin_gateway_retries_total 1"
    assert retries in plant.get("/metrics").body.decode()
    other.start()
    eventually(lambda: "z-us" in zones_of(chats(plant, 4)))


def test_a_replica_that_fails_now_and_then_is_left_after_three_in_a_row(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    publish(plant, model_view(*in_two_countries(replica, other)))
    other.behaviour.status = 503
    assert {answer.status for answer in chats(plant, 20)} == {200}
    assert 3 <= len(other.seen.bodies) <= 5
    assert len(plant.ends(20)) == 20


def test_a_conversation_stays_with_the_replica_that_read_its_beginning(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    publish(plant, model_view(*in_two_countries(replica, other)))
    zones = set()
    for number in range(12):
        first = {"role": "user", "content": f"question {number}"}
        turns = [first, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "so"}]
        went = {
            plant.chat(messages=turns[:length]).headers["x-moulin-zone"] for length in (1, 2, 3)
        }
        assert len(went) == 1
        zones |= went
    assert zones == {"z-fr", "z-us"}


def test_another_model_serves_when_no_replica_can(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    first = model_view(replica_view(replica), fallbacks=("none", "small"))
    second = model_view(
        replica_view(other, "end_2.u0.g1", zone="z2"),
        name="small",
        endpoint="end_2",
        context_tokens=100,
        price_output_neur=50,
    )
    publish(plant, first, second)
    own = plant.chat()
    assert (own.headers["x-moulin-zone"], "x-moulin-model" in own.headers) == ("z1", False)
    replica.stop()
    served = plant.chat(max_tokens=200)
    assert (served.status, served.headers["x-moulin-model"]) == (200, "small")
    assert (other.seen.bodies[-1]["model"], other.seen.bodies[-1]["max_tokens"]) == ("small", 100)
    streamed = plant.chat(stream=True)
    assert streamed.headers["x-moulin-model"] == "small"
    ends = [end for end in plant.ends(3) if end.model == "small"]
    assert {(end.endpoint, end.amount_neur) for end in ends} == {("end_2", 5 * 100 + 3 * 50)}
    assert "moulin_gateway_fallbacks_total 2" in plant.get("/metrics").body.decode()


def test_a_fallback_obeys_the_key(plant: Plant, replica: ReplicaFake, other: ReplicaFake) -> None:
    first = model_view(replica_view(replica), fallbacks=("small",))
    abroad = replica_view(other, "end_2.u0.g1", zone="z2", country="US")
    second = model_view(abroad, name="small", endpoint="end_2")
    publish(plant, first, second, keys=(key_view(countries=("FR",)),))
    replica.stop()
    assert plant.chat().status == 502
    publish(plant, first, second, keys=(key_view(models=("smol",)),))
    assert plant.chat().status == 502
    assert other.seen.bodies == []
    publish(plant, first, second, keys=(key_view(),))
    assert plant.chat().headers["x-moulin-model"] == "small"


def alias(**changes: object) -> AliasView:
    targets = tuple(AliasTarget(model=name, weight=w) for name, w in (("smol", 3), ("small", 1)))
    fields: dict[str, object] = {"name": "chat", "targets": targets, **changes}
    return AliasView(**fields)  # type: ignore[arg-type]


def publish_aliases(
    plant: Plant, first: ReplicaFake, second: ReplicaFake, *aliases: AliasView, **changes: object
) -> None:
    new = model_view(replica_view(second, "end_2.u0.g1", zone="z2"), name="small", endpoint="end_2")
    publish(plant, model_view(replica_view(first)), new, aliases=aliases, **changes)


def test_an_alias_shares_requests_out_and_is_rolled_back_at_once(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    publish_aliases(plant, replica, other, alias())
    served = Counter(plant.chat(model="chat").headers["x-moulin-model"] for _ in range(60))
    assert served["smol"] > served["small"] > 0
    assert {body["model"] for body in other.seen.bodies} == {"small"}
    assert "chat" in {model["id"] for model in plant.get("/v1/models").json["data"]}
    assert {end.model for end in plant.ends(60)} == {"smol", "small"}
    seen = len(other.seen.bodies)
    publish_aliases(plant, replica, other, alias(targets=(AliasTarget(model="smol", weight=1),)))
    assert {plant.chat(model="chat").headers["x-moulin-model"] for _ in range(10)} == {"smol"}
    assert len(other.seen.bodies) == seen
    publish_aliases(plant, replica, other)
    assert plant.chat(model="chat").status == 404


def test_an_alias_may_have_the_name_of_an_endpoint(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    assert plant.chat().status == 200
    to_new = alias(name="smol", targets=(AliasTarget(model="small", weight=1),))
    publish_aliases(plant, replica, other, to_new)
    assert plant.chat().headers["x-moulin-model"] == "small"
    publish_aliases(plant, replica, other)
    assert "x-moulin-model" not in plant.chat().headers


def test_a_deprecated_name_warns_and_then_ends(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    now_ns = time.time_ns()
    publish_aliases(
        plant, replica, other, alias(deprecated_at_ns=1688169599 * NS, sunset_at_ns=now_ns * 2)
    )
    answer = plant.chat(model="chat")
    assert answer.status == 200
    assert answer.headers["deprecation"] == "@1688169599"
    assert answer.headers["sunset"].endswith(" GMT")
    assert answer.headers["link"] == '</v1/models/smol>; rel="successor-version"'
    publish_aliases(plant, replica, other, alias(sunset_at_ns=now_ns))
    ended = plant.chat(model="chat")
    assert (ended.status, "use smol instead" in ended.json["error"]["message"]) == (404, True)


def test_aliases_obey_keys_and_projects(
    plant: Plant, replica: ReplicaFake, other: ReplicaFake
) -> None:
    only_name = (key_view(models=("chat",)),)
    publish_aliases(plant, replica, other, alias(), keys=only_name)
    assert plant.chat(model="chat").status == 200
    assert plant.chat(model="smol").status == 403
    publish_aliases(plant, replica, other, alias(), keys=(key_view(models=("smol",)),))
    assert plant.chat(model="chat").status in {403, 404}
    publish_aliases(plant, replica, other, alias(project="elsewhere"), keys=(key_view(),))
    assert plant.chat(model="chat").status == 404
    publish_aliases(plant, replica, other, alias(project="lab"))
    assert plant.chat(model="chat").status == 200
