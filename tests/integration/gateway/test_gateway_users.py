"""Users of a project as clients meet them: real gateways under the real control plane."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moulin.controlplane.commands import ReadAllowances, UpdateKey
from moulin.domain.control import KeyChange
from moulin.domain.limits import ALL_SLICES, Allowance, Period, UserNames, UserRule
from moulin.identity.users import names_of_user, recorded_user
from tests.integration.controlplane.bench import ADMIN
from tests.integration.gateway.control_real import ControlReal
from tests.integration.gateway.plant import (
    PEPPER,
    PRICE_OUTPUT_NEUR,
    Answer,
    Plant,
    chat_body,
    eventually,
    model_view,
    replica_view,
)
from tests.integration.gateway.replica_fake import ReplicaFake

Opened = Callable[..., tuple[Plant, ControlReal]]
RESERVED_NEUR = 10 * PRICE_OUTPUT_NEUR
USED_NEUR = 3 * PRICE_OUTPUT_NEUR


@pytest.fixture
def served(tmp_path: Path, replica: ReplicaFake) -> Iterator[Opened]:
    """A gateway under a real control plane whose project says what each user may use."""
    opened: list[tuple[Plant, ControlReal]] = []

    def open_plant(key: dict[str, Any] | None = None, **project: Any) -> tuple[Plant, ControlReal]:
        model = model_view(
            replica_view(replica, parallel_requests=256), project="atelier", price_input_neur=0
        )
        control = ControlReal(model, key=key or {}, **project)
        plant = Plant(tmp_path, control)  # type: ignore[arg-type]
        opened.append((plant, control))
        plant.start()
        eventually(lambda: control.shares.get("g1", 0) == ALL_SLICES)
        return plant, control

    yield open_plant
    for plant, control in opened:
        plant.stop()
        control.stop()


def per_user(limit_neur: int = -1, **rule: Any) -> UserRule:
    allowance = Allowance(amount_neur=limit_neur, period=Period.MONTH)
    return UserRule(is_counted=True, **{"allowance": allowance, **rule})


def ask(plant: Plant, user: str | None, **fields: Any) -> Answer:
    named = {} if user is None else {"user": user}
    return plant.post(chat_body(max_tokens=10, **named, **fields))


def used(control: ControlReal, user: str) -> list[int]:
    """Return what a user used of every allowance, as who looks by name is told."""
    users = names_of_user(PEPPER, "atelier", user)
    page = control.tell(ReadAllowances(project="atelier", users=users))
    return [view.used for view in page.items]


def test_each_user_has_an_own_hard_limit(served: Opened) -> None:
    plant, control = served(per_user=per_user(2 * RESERVED_NEUR))
    assert [ask(plant, "ada").status for _ in range(4)] == [200] * 4
    refused = ask(plant, "ada")
    assert refused.status == 402
    error = refused.json["error"]
    assert error["type"] == "insufficient_quota"
    assert "user ada has 0.000" in error["message"]
    assert "until 20" in error["message"]
    assert ask(plant, "grace").status == 200
    eventually(lambda: used(control, "ada") == [4 * USED_NEUR])
    eventually(lambda: used(control, "grace") == [USED_NEUR])


def test_who_gives_no_name_shares_one_limit(served: Opened) -> None:
    plant, _ = served(per_user=per_user(RESERVED_NEUR))
    assert ask(plant, None).status == 200
    refused = ask(plant, None)
    assert refused.status == 402
    assert "user without a name has" in refused.json["error"]["message"]
    assert ask(plant, "ada").status == 200
    newer = plant.post(chat_body(max_tokens=10, safety_identifier="ada"))
    assert newer.status == 402
    assert "x-moulin-ignored" not in newer.headers


def test_a_keys_label_says_whose_it_is_whatever_requests_say(served: Opened) -> None:
    plant, control = served(
        {"labels": {"user": "ada"}, "per_user": Allowance(tokens=600)}, per_user=per_user()
    )
    assert ask(plant, "grace").status == 200
    eventually(lambda: used(control, "ada") == [8])
    refused = plant.post(chat_body(max_tokens=1000, user="grace"))
    assert refused.status == 402
    assert "user ada has 592 tokens left of 600 tokens" in refused.json["error"]["message"]


def test_a_limit_of_a_key_for_its_users_can_be_set_and_lifted(served: Opened) -> None:
    plant, control = served()
    assert ask(plant, "ada").headers["x-moulin-ignored"] == "user"

    def declare(allowance: Allowance) -> None:
        change = KeyChange(per_user=allowance)
        control.tell(UpdateKey(principal=ADMIN, key="key_1", change=change))

    declare(Allowance(amount_neur=RESERVED_NEUR))
    eventually(lambda: "x-moulin-ignored" not in ask(plant, "ada").headers)
    eventually(lambda: ask(plant, "ada").status == 402)
    declare(Allowance())
    eventually(lambda: [ask(plant, "ada").status for _ in range(4)] == [200] * 4)


def test_names_are_recorded_as_hashes_unless_the_operator_keeps_them(served: Opened) -> None:
    plant, control = served(per_user=per_user(10**9))
    assert ask(plant, "ada.lovelace@example.org").status == 200
    hashed = recorded_user(PEPPER, "atelier", "ada.lovelace@example.org", keeps_name=False)
    eventually(lambda: _recorded(control) == {hashed})
    assert "ada" not in repr(control.bench.plane.books)


def test_names_are_kept_where_the_operator_says_so(served: Opened) -> None:
    plant, control = served(per_user=per_user(10**9, names=UserNames.STORED))
    assert ask(plant, 'ada "#/" løvelace').status == 200
    eventually(lambda: _recorded(control) == {'ada "#/" løvelace'})
    refused = ask(plant, "ada\x1b[2J")
    assert (refused.status, refused.json["error"]["param"]) == (400, "user")
    assert ask(plant, "a" * 257).status == 400
    wrong = plant.post(chat_body(user=["ada"]))
    assert (wrong.status, wrong.json["error"]["code"]) == (400, "invalid_type")


def test_two_gateways_never_let_a_user_spend_more(
    tmp_path: Path, served: Opened, replica: ReplicaFake
) -> None:
    limit_neur = 6 * RESERVED_NEUR
    plant, control = served(per_user=per_user(limit_neur))
    other = Plant(tmp_path / "other", control, name="g2")  # type: ignore[arg-type]
    other.start()
    replica.behaviour.delay_s = 0.2
    statuses: list[tuple[str, int]] = []

    def burst(gateway: Plant, user: str) -> None:
        statuses.extend((user, ask(gateway, user).status) for _ in range(6))

    try:
        threads = [
            threading.Thread(target=burst, args=(gateway, user))
            for gateway in (plant, other)
            for user in ("ada", "grace")
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        other.stop()
    for user in ("ada", "grace"):
        served_count = statuses.count((user, 200))
        assert served_count + statuses.count((user, 402)) == 36
        assert limit_neur // RESERVED_NEUR <= served_count <= limit_neur // USED_NEUR
        eventually(lambda: used(control, user) == [served_count * USED_NEUR])  # noqa: B023


def test_a_quiet_user_gives_back_what_a_gateway_was_granted(served: Opened) -> None:
    plant, control = served(per_user=per_user(2 * RESERVED_NEUR))
    assert ask(plant, "ada").status == 200
    crowd = next(iter(control.bench.plane.books.allowances.crowds.values()))
    eventually(lambda: [each.held for each in crowd.spending.values()] == [0], timeout_s=12)
    (epoch,) = control.bench.plane.books.gateways.epochs.values()
    assert not [name for name in epoch.kept if name.startswith("project_user")]
    assert [ask(plant, "ada").status for _ in range(3)] == [200] * 3
    assert ask(plant, "ada").status in {200, 402}
    eventually(lambda: used(control, "ada")[0] >= 4 * USED_NEUR)


def _recorded(control: ControlReal) -> set[str]:
    crowds = control.bench.plane.books.allowances.crowds.values()
    return {
        name.partition("/")[2].rpartition("#")[0] for crowd in crowds for name in crowd.spending
    }
