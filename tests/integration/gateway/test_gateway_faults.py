"""What happens when a client, a replica, the gateway or the control plane goes away."""

import http.client
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from moulin.domain.snapshot import ProjectView
from tests.integration.gateway.control_fake import ControlFake
from tests.integration.gateway.plant import (
    CHAT,
    KEY,
    OTHER_KEY,
    Answer,
    Plant,
    chat_body,
    eventually,
    free_port,
    key_view,
    model_view,
    replica_view,
)
from tests.integration.gateway.replica_fake import ReplicaFake


@pytest.fixture
def second_replica() -> Iterator[ReplicaFake]:
    fake = ReplicaFake()
    fake.start()
    yield fake
    fake.close()


def send_chat(plant: Plant, **fields: object) -> socket.socket:
    """Send a chat and return its connection without waiting."""
    body = json.dumps(chat_body(**fields)).encode()
    connection = socket.create_connection(("127.0.0.1", plant.port), timeout=20)
    connection.sendall(
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


def open_stream(plant: Plant, **fields: object) -> tuple[socket.socket, bytes]:
    """Send a streamed chat and return the connection after its first event."""
    connection = send_chat(plant, stream=True, **fields)
    data = b""
    while b"w1 " not in data:
        data += connection.recv(65536)
    return connection, data


def publish_two(plant: Plant, first: ReplicaFake, second: ReplicaFake) -> None:
    plant.control.publish(
        models=(
            model_view(
                replica_view(first, "end_1.u0.g1", parallel_requests=1000),
                replica_view(second, "end_1.u1.g1", zone="z2", parallel_requests=1000),
            ),
        )
    )
    version = plant.control.snapshot.version
    eventually(lambda: plant.get("/healthz").json["snapshot"] == version)


def test_a_client_that_leaves_frees_the_replica_and_pays_for_what_it_got(
    plant: Plant, replica: ReplicaFake
) -> None:
    replica.behaviour.events = 1000
    replica.behaviour.event_delay_s = 0.02
    connection, _ = open_stream(plant)
    connection.close()
    eventually(lambda: replica.seen.cancelled == 1)
    (end,) = plant.ends(1)
    assert (end.outcome, end.is_estimated) == ("client_disconnected", True)
    assert 2 <= end.tokens_output <= 64
    assert end.amount_neur == end.tokens_input * 100 + end.tokens_output * 300


def test_a_client_that_leaves_before_the_answer_pays_nothing(
    plant: Plant, replica: ReplicaFake
) -> None:
    replica.behaviour.delay_s = 60
    with send_chat(plant):
        eventually(lambda: len(replica.seen.bodies) == 1)
    eventually(lambda: replica.seen.cancelled == 1)
    (end,) = plant.ends(1)
    assert (end.outcome, end.amount_neur) == ("client_disconnected", 0)


def test_a_stream_that_breaks_says_so_and_is_charged_as_delivered(
    plant: Plant, replica: ReplicaFake
) -> None:
    replica.behaviour.closes_after_events = 2
    with pytest.raises(http.client.IncompleteRead) as caught:
        plant.chat(stream=True)
    text = caught.value.partial.decode()
    assert "w1 " in text
    assert '"error"' in text
    assert "[DONE]" not in text
    (end,) = plant.ends(1)
    assert (end.outcome, end.tokens_output, end.is_estimated) == ("upstream_failed", 2, True)


def test_a_stream_without_usage_is_estimated(plant: Plant, replica: ReplicaFake) -> None:
    replica.behaviour.has_usage = False
    assert plant.chat(stream=True).body.endswith(b"data: [DONE]\n\n")
    (end,) = plant.ends(1)
    assert (end.outcome, end.tokens_output, end.is_estimated) == ("completed", 4, True)


def test_usage_above_the_reservation_is_charged_at_the_reservation(
    plant: Plant, replica: ReplicaFake
) -> None:
    replica.behaviour.tokens_output = 10**9
    plant.chat(max_tokens=7)
    (end,) = plant.ends(1)
    assert end.tokens_output == 7
    assert "usage_above_bound_total 1" in plant.get("/metrics").body.decode()


def test_a_dead_replica_hangs_nobody(
    plant: Plant, replica: ReplicaFake, second_replica: ReplicaFake
) -> None:
    publish_two(plant, replica, second_replica)
    replica.stop()
    started_s = time.monotonic()
    zones = {plant.chat().headers["x-moulin-zone"] for _ in range(20)}
    assert zones == {"z2"}
    assert time.monotonic() - started_s < 10
    second_replica.stop()
    refused = plant.chat()
    assert (refused.status, refused.json["error"]["code"]) == (502, "engine_unavailable")
    assert "retry-after" in refused.headers
    second_replica.start()
    eventually(lambda: plant.chat().status == 200)


@pytest.mark.parametrize("fault", ["closes", "is loading"])
def test_another_replica_answers_before_the_first_byte(
    plant: Plant, replica: ReplicaFake, second_replica: ReplicaFake, fault: str
) -> None:
    publish_two(plant, replica, second_replica)
    replica.behaviour.closes_at_once = fault == "closes"
    replica.behaviour.status = 503
    answers = [plant.chat() for _ in range(6)]
    assert {answer.status for answer in answers} == {200}
    ends = plant.ends(6)
    assert {end.replica for end in ends} == {"end_1.u1.g1"}
    assert replica.seen.bodies


def test_a_refusal_of_the_replica_is_passed_on_and_free(plant: Plant, replica: ReplicaFake) -> None:
    replica.behaviour.status = 400
    assert plant.chat().json["error"]["message"] == "no"
    (end,) = plant.ends(1)
    assert (end.outcome, end.amount_neur) == ("completed", 0)


def test_when_every_slot_is_taken_requests_wait_and_the_queue_is_bounded(
    plant: Plant, replica: ReplicaFake
) -> None:
    plant.control.publish(models=(model_view(replica_view(replica, parallel_requests=1)),))
    eventually(lambda: plant.get("/healthz").json["snapshot"] == 2)
    replica.behaviour.delay_s = 0.05
    statuses = [answer.status for answer in at_once(plant, 20)]
    assert statuses == [200] * 20
    replica.behaviour.delay_s = 60
    connections = [send_chat(plant) for _ in range(270)]
    eventually(lambda: len(select.select(connections, [], [], 0)[0]) == 13)
    refused = select.select(connections, [], [], 0)[0][0].recv(65536)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 2" in refused
    assert b"256 requests wait already" in refused
    for connection in connections:
        connection.close()
    eventually(lambda: "requests_in_flight 0" in plant.get("/metrics").body.decode())
    replica.behaviour.delay_s = 0
    assert plant.chat().status == 200


def test_a_model_without_replicas_lets_requests_wait_for_one(
    plant: Plant, replica: ReplicaFake
) -> None:
    plant.control.publish(models=(model_view(),))
    eventually(lambda: plant.get("/healthz").json["snapshot"] == 2)
    answers: list[Answer] = []
    waiting = threading.Thread(target=lambda: answers.append(plant.chat()))
    waiting.start()
    eventually(lambda: "requests_queued 1" in plant.get("/metrics").body.decode())
    plant.control.publish(models=(model_view(replica_view(replica)),))
    waiting.join(20)
    assert [answer.status for answer in answers] == [200]


def test_jurisdiction(plant: Plant, replica: ReplicaFake, second_replica: ReplicaFake) -> None:
    model = model_view(
        replica_view(replica, country="US"), replica_view(second_replica, "end_1.u1.g1", zone="z2")
    )
    plant.control.publish(
        models=(model,),
        keys=(key_view(countries=("FR", "SE")), key_view(OTHER_KEY, id="key_2", project="us")),
        projects=(
            ProjectView(name="lab", organisation="uni", countries=("FR", "US")),
            ProjectView(name="us", organisation="uni"),
        ),
    )
    eventually(lambda: plant.get("/healthz").json["snapshot"] == 2)
    assert {plant.chat().headers["x-moulin-zone"] for _ in range(6)} == {"z2"}
    guessed = replace(model.replicas[1], country_basis="guessed")
    plant.control.publish(models=(replace(model, replicas=(model.replicas[0], guessed)),))
    eventually(lambda: plant.get("/healthz").json["snapshot"] == 3)
    refused = plant.chat()
    assert refused.status == 403
    assert "only FR may be used" in refused.json["error"]["message"]
    assert "no country asserted" in refused.json["error"]["message"]


def test_keys_unknown_revoked_and_expired(plant: Plant) -> None:
    assert plant.post(chat_body(), key=OTHER_KEY).status == 401
    assert plant.post(chat_body(), key="").status == 401
    assert plant.post(chat_body(), key="mk_" + "x" * 4000).status == 401
    assert plant.chat().status == 200
    expiring = key_view(expires_at_ns=time.time_ns() + 10**9)
    plant.control.publish(keys=(expiring,))
    eventually(lambda: plant.chat().status == 401, 10)
    plant.control.publish(keys=(key_view(),))
    eventually(lambda: plant.chat().status == 200)
    plant.control.publish(keys=())
    eventually(lambda: plant.chat().status == 401)
    body = plant.chat().json
    error = body["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


def test_a_key_revoked_while_its_request_waits_is_not_served(
    plant: Plant, replica: ReplicaFake
) -> None:
    plant.control.publish(models=(model_view(),))
    eventually(lambda: plant.get("/healthz").json["snapshot"] == 2)
    answers: list[Answer] = []
    waiting = threading.Thread(target=lambda: answers.append(plant.chat()))
    waiting.start()
    eventually(lambda: "requests_queued 1" in plant.get("/metrics").body.decode())
    plant.control.publish(models=(model_view(replica_view(replica)),), keys=())
    waiting.join(20)
    assert [answer.status for answer in answers] == [401]
    assert replica.seen.bodies == []


def test_the_gateway_serves_while_the_control_plane_is_away_and_not_for_ever(
    plant: Plant, control: ControlFake
) -> None:
    control.publish(staleness_max_s=15)
    eventually(lambda: plant.get("/healthz").json["snapshot"] == 2)
    assert plant.chat().status == 200
    control.stop()
    assert plant.chat().status == 200
    plant.kill()
    plant.start()
    # No escrow is left and none can be had: the request is refused, not served on credit.
    refused = plant.chat()
    assert (refused.status, refused.json["error"]["code"]) == (503, "unavailable")
    assert "retry-after" in refused.headers
    eventually(lambda: plant.get("/healthz").status == 503, 40)
    assert "last heard" in plant.chat().json["error"]["message"]
    control.start()
    eventually(lambda: plant.chat().status == 200)


def test_sigterm_finishes_what_runs_cuts_what_does_not_and_settles_all(
    plant: Plant, replica: ReplicaFake, control: ControlFake
) -> None:
    replica.behaviour.events = 1000
    replica.behaviour.event_delay_s = 0.02
    connection, _ = open_stream(plant)
    assert plant.stop() == 0
    rest = b""
    while piece := connection.recv(65536):
        rest += piece
    connection.close()
    assert b"the gateway is stopping" in rest
    (end,) = control.records()
    assert (end.outcome, end.is_estimated) == ("cut", True)
    (epoch,) = control.complete
    assert control.granted[epoch]["lab"] == end.amount_neur + control.returned[epoch]["lab"]
    assert not list(plant.data.glob("gateway/*.journal"))


def test_a_port_in_use_and_a_data_directory_in_use_are_said(plant: Plant) -> None:
    second = Plant(plant.data, plant.control)
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(20) == 1
    assert "another one runs there" in second.log.read_text()
    other = plant.data / "other"
    other.mkdir()
    third = Plant(other, plant.control)
    third.start(wait=False, port=plant.port)
    assert third.process is not None
    assert third.process.wait(20) == 1
    assert "another program does" in third.log.read_text()


def test_idle_escrow_goes_back(plant: Plant, control: ControlFake) -> None:
    plant.chat()
    (end,) = plant.ends(1)
    eventually(lambda: control.budget_left["lab"] == 10**12 - end.amount_neur, 20)


def test_escrow_of_a_lost_reply_is_not_lost(plant: Plant, control: ControlFake) -> None:
    control.replies_to_lose = 2
    assert plant.chat().status == 200
    assert control.replies_to_lose == 0
    (end,) = plant.ends(1)
    eventually(lambda: control.budget_left["lab"] == 10**12 - end.amount_neur, 20)


def at_once(plant: Plant, count: int, **fields: object) -> list[Answer]:
    """Send `count` chats at the same time, each over its own connection."""
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(plant.chat(**fields))) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def test_a_budget_is_exact_under_three_hundred_requests_at_once(
    plant: Plant, replica: ReplicaFake, control: ControlFake
) -> None:
    """Every answer is paid for, no more is granted than the budget holds, refusals carry numbers."""
    bound_neur = (len(json.dumps(chat_body(max_tokens=3))) + 64) * 100 + 3 * 300
    used_neur = 5 * 100 + 3 * 300
    budget_neur = 20 * bound_neur
    assert budget_neur // used_neur < 300  # so some are refused, however soon the first are settled
    control.budget_left["lab"] = budget_neur
    answers = at_once(plant, 300, max_tokens=3)
    served = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 402]
    assert len(served) + len(refused) == 300
    assert 20 <= len(served) <= budget_neur // used_neur
    error = refused[0].json["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "budget_exceeded")
    assert error["reason"]["code"] == "BudgetExceeded"
    assert error["reason"]["parameters"]["project"] == "lab"
    ends = plant.ends(len(served))
    assert sum(end.amount_neur for end in ends) == used_neur * len(served)
    plant.stop()
    (epoch,) = control.complete
    spent = control.charged(epoch, "lab")
    assert spent == used_neur * len(served)
    assert control.granted[epoch]["lab"] == spent + control.returned[epoch]["lab"]
    assert control.budget_left["lab"] == budget_neur - spent


def test_a_killed_gateway_owes_what_it_had_begun(
    plant: Plant, replica: ReplicaFake, control: ControlFake
) -> None:
    """SIGKILL in a burst: each answer a client got is on record, the rest is charged as reserved."""
    replica.behaviour.delay_s = 0.01
    got: list[str] = []
    stop = threading.Event()

    def burst() -> None:
        while not stop.is_set():
            try:
                answer = plant.chat(max_tokens=8)
            except (OSError, http.client.HTTPException):
                return
            got.append(answer.headers["x-request-id"])

    threads = [threading.Thread(target=burst) for _ in range(16)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(got) > 100)
    replica.behaviour.delay_s = 5
    eventually(lambda: "requests_in_flight 16" in plant.get("/metrics").body.decode())
    plant.kill()
    stop.set()
    for thread in threads:
        thread.join(30)
    journal = next(plant.data.glob("gateway/*.journal"))
    with journal.open("ab") as file:
        file.write(b'{"sequence":99999,"kind":"be')
    first_epoch = int(journal.stem)
    control.stop()
    plant.start()
    control.start()
    eventually(lambda: first_epoch in control.complete)
    begun, ended = control.begun[first_epoch], control.ended[first_epoch]
    assert set(got) <= set(ended)
    open_requests = set(begun) - set(ended)
    assert len(open_requests) == 16
    reserved = sum(begun[name].amount_neur for name in open_requests)
    charged = control.charged(first_epoch, "lab")
    assert charged == len(ended) * 1400 + reserved
    assert charged <= control.granted[first_epoch]["lab"]
    eventually(lambda: not journal.exists())
    replica.behaviour.delay_s = 0
    assert plant.chat().status == 200


def test_the_control_plane_restarts_during_traffic(plant: Plant, control: ControlFake) -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def traffic() -> None:
        while not stop.is_set():
            statuses.append(plant.chat(max_tokens=8).status)

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        served = len(statuses)
        eventually(lambda served=served: len(statuses) > served + 50)  # type: ignore[misc]
        control.stop()
        control.start()
    stop.set()
    for thread in threads:
        thread.join(30)
    assert set(statuses) == {200}
    ends = plant.ends(len(statuses))
    assert len({end.request for end in ends}) == len(statuses)


def test_a_gateway_without_a_snapshot_says_so(plant: Plant, control: ControlFake) -> None:
    control.stop()
    other = plant.data / "other"
    other.mkdir()
    second = Plant(other, control)
    second.port = free_port()
    second.start(wait=False)
    eventually(lambda: _answers(second))
    refused = second.chat()
    assert refused.status == 503
    assert "no snapshot yet" in refused.json["error"]["message"]
    second.stop()


def _answers(plant: Plant) -> bool:
    try:
        return plant.get("/healthz").status == 503
    except OSError:
        return False
