"""Cost and carbon in the usage of answers, in OpenGateLLM's form, through the stock `openai` client."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pydantic
import pytest

from tests.integration.gateway.control_fake import ControlFake
from tests.integration.gateway.plant import KEY, Plant, eventually, model_view, replica_view
from tests.integration.gateway.replica_fake import ReplicaFake

openai = pytest.importorskip("openai")

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
ASKING = {"X-Moulin-Usage-Figures": "true"}


class Range(pydantic.BaseModel):
    """As OpenGateLLM's clients read it: either end may be null."""

    min: float | None
    max: float | None


class Carbon(pydantic.BaseModel):
    kWh: Range  # noqa: N815 - the field's own name
    kgCO2eq: Range  # noqa: N815 - the field's own name


class Usage(pydantic.BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: float
    carbon: Carbon


@pytest.fixture
def gpt(plant: Plant) -> Iterator[Any]:
    url = f"http://127.0.0.1:{plant.port}/v1"
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def read(usage: Any) -> Usage:
    return Usage.model_validate(usage.model_dump())


def test_usage_says_what_the_headers_say_where_it_is_asked_for(
    gpt: Any, control: ControlFake, replica: ReplicaFake
) -> None:
    view = replica_view(replica, energy_class="D", energy_uncertainty_ppm=500_000)
    control.publish(models=(model_view(view),))
    create = gpt.chat.completions.with_raw_response.create

    def ask(**more: Any) -> Any:
        return create(model="smol", messages=MESSAGES, **more)

    eventually(lambda: ask().headers.get("x-moulin-energy-class") == "D")
    plain = ask().parse().usage.model_dump()
    assert "cost" not in plain
    assert "carbon" not in plain
    raw = ask(extra_headers=ASKING)
    usage = read(raw.parse().usage)
    assert usage.cost == pytest.approx(float(raw.headers["x-moulin-cost-eur"]))
    middle_kwh = float(raw.headers["x-moulin-energy-j"]) / 3.6e6
    middle_kg = float(raw.headers["x-moulin-co2e-g"]) / 1000
    assert ends(usage.carbon.kWh) == pytest.approx((middle_kwh / 2, middle_kwh * 1.5))
    assert ends(usage.carbon.kgCO2eq) == pytest.approx((middle_kg / 2, middle_kg * 1.5))
    several = read(ask(extra_headers=ASKING, n=2).parse().usage)
    assert several.cost == pytest.approx(2 * usage.cost)
    assert ends(several.carbon.kWh) == pytest.approx((middle_kwh, middle_kwh * 3))


def ends(found: Range) -> tuple[float, float]:
    assert found.min is not None
    assert found.max is not None
    return found.min, found.max


def test_a_stream_says_it_in_its_usage_and_nowhere_else(gpt: Any) -> None:
    seen = []
    for n in (1, 2):
        with gpt.chat.completions.create(
            model="smol",
            messages=MESSAGES,
            n=n,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers=ASKING,
        ) as stream:
            (usage,) = [chunk.usage for chunk in stream if chunk.usage]
        seen.append(read(usage))
    assert seen[0].total_tokens == 8
    assert seen[1].cost == pytest.approx(2 * seen[0].cost)
    unasked = gpt.chat.completions.create(
        model="smol", messages=MESSAGES, stream=True, extra_headers=ASKING
    )
    assert all(chunk.choices for chunk in unasked)


@pytest.mark.parametrize(
    ("changes", "has_energy", "reason"),
    [
        ({"energy_uj_per_token_input": 0, "energy_uj_per_token_output": 0}, False, "power"),
        ({"carbon_ng_per_j": 0}, True, "carbon intensity of zone"),
    ],
)
def test_what_nobody_knows_is_null_with_a_reason(
    plant: Plant, gpt: Any, *, changes: Any, has_energy: bool, reason: str
) -> None:
    control = plant.control
    (model,) = control.snapshot.models
    view = replace(model.replicas[0], zone="elsewhere", **changes)
    control.publish(models=(model_view(view),))
    eventually(lambda: plant.chat().headers["x-moulin-zone"] == "elsewhere")
    answer = gpt.chat.completions.create(model="smol", messages=MESSAGES, extra_headers=ASKING)
    usage = read(answer.usage)
    assert (usage.carbon.kWh.max is not None) is has_energy
    assert (usage.carbon.kgCO2eq.min, usage.carbon.kgCO2eq.max) == (None, None)
    assert reason in answer.usage.model_dump()["carbon"]["reason"]
    assert usage.cost > 0


def test_a_gateway_may_say_it_always(tmp_path: Any, control: ControlFake) -> None:
    plant = Plant(tmp_path / "always", control)
    plant.words = ["--usage-figures"]
    plant.start()
    try:
        assert Usage.model_validate(plant.chat().json["usage"]).cost > 0
    finally:
        plant.stop()
