"""Limits of keys as clients meet them: real gateways under the real control plane."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moulin.controlplane.commands import RotateKey, UpdateKey
from moulin.domain.control import KeyChange
from moulin.domain.ids import KeyId
from moulin.domain.limits import ALL_SLICES, SLICES, Allowance, Period, RateLimit
from moulin.domain.snapshot import ModelView
from moulin.identity.keys import digest
from tests.integration.controlplane.bench import ADMIN
from tests.integration.gateway.control_real import ControlReal
from tests.integration.gateway.plant import (
    KEY,
    OTHER_KEY,
    PEPPER,
    PRICE_OUTPUT_NEUR,
    Plant,
    chat_body,
    eventually,
    model_view,
    replica_view,
)
from tests.integration.gateway.replica_fake import ReplicaFake

Opened = Callable[..., tuple[Plant, ControlReal]]


@pytest.fixture
def served(tmp_path: Path, replica: ReplicaFake) -> Iterator[Opened]:
    """A gateway under a real control plane whose one key has the limits a test asks for."""
    opened: list[tuple[Plant, ControlReal]] = []

    def open_plant(key: dict[str, Any] | None = None, **project: Any) -> tuple[Plant, ControlReal]:
        control = ControlReal(_model(replica), key=key or {}, **project)
        plant = Plant(tmp_path, control)  # type: ignore[arg-type]
        opened.append((plant, control))
        plant.start()
        eventually(lambda: _share(control) == ALL_SLICES)
        return plant, control

    yield open_plant
    for plant, control in opened:
        plant.stop()
        control.stop()


def _model(replica: ReplicaFake) -> ModelView:
    view = replica_view(replica, parallel_requests=256)
    return model_view(view, project="atelier", price_input_neur=0)


def _share(control: ControlReal) -> int:
    """Return the slices that the gateway says it keeps to."""
    return control.shares.get("g1", 0)


def test_a_rate_of_requests_is_kept_and_told(served: Opened) -> None:
    plant, _ = served({"rate": RateLimit(requests_per_minute=3)})
    answers = [plant.chat() for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == [
        "2", "1", "0", "0", "0",
    ]  # fmt: skip
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
    assert answers[0].headers["x-ratelimit-reset-requests"] in {"1m0s", "1m1s"}
    assert 1 <= int(answers[3].headers["retry-after"]) <= 61
    error = answers[3].json["error"]
    assert error["type"] == "rate_limit_error"
    assert error["code"] == "rate_limit_exceeded"
    assert "key key_1 may have 3 requests a minute" in error["message"]


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_a_minute_outlives_the_process_that_counts_it(served: Opened, end: str) -> None:
    """Twice, so that the second start knows of the first only by the file."""
    plant, control = served({"rate": RateLimit(requests_per_minute=4)})
    statuses = []
    for _ in range(3):
        statuses += [plant.chat().status for _ in range(2)]
        plant.kill() if end == "killed" else plant.stop()
        control.shares.clear()
        plant.start()
        eventually(lambda: _share(control) == ALL_SLICES)
    assert statuses == [200, 200, 200, 200, 429, 429]
    refused = plant.chat()
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


def test_tokens_a_minute_outlive_a_kill(served: Opened) -> None:
    plant, control = served({"rate": RateLimit(tokens_per_minute=400)})
    left = plant.chat(max_tokens=64).headers["x-ratelimit-remaining-tokens"]
    plant.kill()
    control.shares.clear()
    plant.start()
    eventually(lambda: _share(control) == ALL_SLICES)
    again = plant.chat(max_tokens=64)
    assert again.status == 200
    assert int(again.headers["x-ratelimit-remaining-tokens"]) < int(left)


def test_tokens_a_minute_count_what_was_used(served: Opened) -> None:
    plant, _ = served({"rate": RateLimit(tokens_per_minute=400)})
    first = plant.chat(max_tokens=64)
    assert first.status == 200
    # 5 + 3 tokens were used of up to 64 + the bound of the prompt.
    second = plant.chat(max_tokens=64)
    assert second.status == 200
    refused = plant.chat(max_tokens=1000)
    assert refused.status == 429
    assert "smaller max_tokens" in refused.json["error"]["message"]
    assert "retry-after" not in refused.headers
    assert second.headers["x-ratelimit-limit-tokens"] == "400"


def test_only_so_many_run_at_once(served: Opened, replica: ReplicaFake) -> None:
    plant, _ = served(organisation_limits={"rate": RateLimit(concurrency=1)})
    replica.behaviour.delay_s = 1.0
    import threading

    statuses: list[int] = []
    first = threading.Thread(target=lambda: statuses.append(plant.chat().status))
    first.start()
    eventually(lambda: len(replica.seen.bodies) == 1)
    refused = plant.chat()
    assert refused.status == 429
    assert "organisation lab may have 1 requests at once" in refused.json["error"]["message"]
    first.join()
    assert statuses == [200]
    assert plant.chat().status == 200


def test_a_budget_in_euros_stops_hard_and_settles(served: Opened) -> None:
    reservation_neur = 10 * PRICE_OUTPUT_NEUR
    plant, control = served({"allowance": Allowance(amount_neur=2 * reservation_neur)})
    used_neur = 3 * PRICE_OUTPUT_NEUR
    assert [plant.chat(max_tokens=10).status for _ in range(4)] == [200] * 4
    refused = plant.chat(max_tokens=10)
    assert refused.status == 402
    assert refused.json["error"]["type"] == "insufficient_quota"
    assert "key key_1 has" in refused.json["error"]["message"]
    eventually(lambda: control.allowances()[0].used == 4 * used_neur)


def test_a_budget_in_tokens_binds_beside_money(served: Opened) -> None:
    plant, control = served(
        allowance=Allowance(tokens=600, amount_neur=10**12, period=Period.MONTH)
    )
    assert plant.chat(max_tokens=16).status == 200
    refused = plant.chat(max_tokens=2000)
    assert refused.status == 402
    assert "project atelier has" in refused.json["error"]["message"]
    assert "tokens" in refused.json["error"]["message"]

    def used() -> dict[str, int]:
        return {view.unit.value: view.used for view in control.allowances()}

    eventually(lambda: used() == {"eur": 3 * PRICE_OUTPUT_NEUR, "tokens": 8})


def test_a_key_restricted_to_models_is_forbidden_the_others(served: Opened) -> None:
    plant, control = served({"models": ("another",)})
    refused = plant.chat()
    assert refused.status == 403
    assert refused.json["error"]["type"] == "permission_error"
    change = UpdateKey(principal=ADMIN, key="key_1", change=KeyChange(models=("smol",)))
    control.tell(change)
    eventually(lambda: plant.chat().status == 200)
    assert plant.post(chat_body(model="nothing")).status == 404


def test_a_rotated_key_works_beside_the_old_one_and_shares_its_limits(served: Opened) -> None:
    plant, control = served({"rate": RateLimit(requests_per_minute=3)})
    assert plant.chat().status == 200
    rotation = RotateKey(
        principal=ADMIN,
        key="key_1",
        id=KeyId("key_2"),
        digest=digest(PEPPER, OTHER_KEY),
        old_until_ns=control.bench.clock.now_ns() + 60 * 10**9,
    )
    control.tell(rotation)
    eventually(lambda: plant.get("/v1/models", OTHER_KEY).status == 200)
    new = plant.post(chat_body(), key=OTHER_KEY)
    assert new.status == 200
    assert new.headers["x-ratelimit-remaining-requests"] == "1"
    assert plant.post(chat_body(), key=KEY).status == 200
    assert plant.post(chat_body(), key=OTHER_KEY).status == 429


def test_a_key_without_limits_hears_of_none(served: Opened) -> None:
    plant, _ = served()
    answer = plant.chat()
    assert answer.status == 200
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)


def test_two_gateways_keep_one_rate_together(
    tmp_path: Path, served: Opened, replica: ReplicaFake
) -> None:
    plant, control = served(rate=RateLimit(requests_per_minute=10))
    other = Plant(tmp_path / "other", control, name="g2")  # type: ignore[arg-type]
    other.start()
    try:
        half = SLICES // 2
        eventually(lambda: [s.bit_count() for s in control.shares.values()] == [half, half])
        statuses = [each.chat().status for _ in range(8) for each in (plant, other)]
        assert statuses.count(200) == 10
        assert statuses.count(429) == 6
    finally:
        other.stop()
