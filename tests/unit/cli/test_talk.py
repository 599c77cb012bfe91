"""A conversation over the gateway: what is kept, what is shown, and how each failure is told."""

import json

import httpx
import pytest

from moulin.cli.talk import Talk
from moulin.domain.errors import (
    BudgetExceeded,
    EngineUnavailable,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from moulin.sdk import Credentials

CREDENTIALS = Credentials(gateway_url="http://gateway.test", api_key="mk_x", project="p")
STREAM = """\
data: {"choices": [{"delta": {"role": "assistant"}}]}

data: {"choices": [{"delta": {"content": "Bon"}}]}

data: {"choices": [{"delta": {"content": "jour"}}]}

data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}

: moulin figures=provisional cost-eur=0.000000012 energy-j=1.5 co2e-g=0.01

data: [DONE]

"""
HEADERS = {"x-moulin-receipt": "rcp_req_1", "x-moulin-zone": "local"}


class Gateway:
    """Answers as it is told and keeps what it was asked."""

    def __init__(self, *, models=("m",), status=200, body=STREAM):
        self.models, self.status, self.body = models, status, body
        self.asked = []

    def __call__(self, request):
        assert request.headers["authorization"] == "Bearer mk_x"
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": name} for name in self.models]})
        self.asked.append(json.loads(request.content))
        return httpx.Response(self.status, text=self.body, headers=HEADERS)


def talk(gateway, model="", system=""):
    found = Talk(CREDENTIALS, httpx.MockTransport(gateway))
    found.begin(model, system=system, tokens_max=5, temperature=0.0)
    return found


def test_an_answer_is_shown_as_it_comes_with_what_it_took():
    gateway = Gateway()
    pieces: list[str] = []
    said = talk(gateway, system="Be brief.").say("Salut", pieces.append)
    assert pieces == ["Bon", "jour"]
    assert said.text == "Bonjour"
    assert said.figures == (
        "9 tokens in, 2 out · 0.000000012 € · 1.5 J · 0.01 g CO2e (provisional) · "
        "zone local · rcp_req_1"
    )
    assert gateway.asked == [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Salut"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 5,
            "temperature": 0.0,
        }
    ]


def test_a_conversation_remembers_what_was_said_and_not_what_failed():
    gateway = Gateway()
    conversation = talk(gateway)
    conversation.say("one", None)
    gateway.status, gateway.body = 402, '{"error": {"code": "budget_exceeded", "message": "no €"}}'
    with pytest.raises(BudgetExceeded, match="no €"):
        conversation.say("two", None)
    gateway.status, gateway.body = 200, STREAM
    conversation.say("three", None)
    said = [message["content"] for message in gateway.asked[-1]["messages"]]
    assert said == ["one", "Bonjour", "three"]


@pytest.mark.parametrize(
    ("models", "error"), [((), NotFound), (("a", "b"), InvalidRequest)], ids=["none", "several"]
)
def test_a_model_that_must_be_chosen(models, error):
    with pytest.raises(error):
        talk(Gateway(models=models))


@pytest.mark.parametrize(
    "body",
    [
        STREAM.replace("data: [DONE]", ""),
        'data: {"error": {"message": "the replica stopped"}}\n\n',
    ],
    ids=["cut", "error"],
)
def test_an_answer_that_breaks_off(body):
    with pytest.raises(EngineUnavailable):
        talk(Gateway(body=body)).say("x", None)


def test_an_answer_that_is_no_gateways():
    with pytest.raises(EngineUnavailable, match="it answered 500"):
        talk(Gateway(status=500, body="<html>")).say("x", None)


def test_a_gateway_that_is_away():
    def away(request):
        raise httpx.ConnectError("refused")

    conversation = Talk(CREDENTIALS, httpx.MockTransport(away))
    with pytest.raises(Unavailable, match=r"http://gateway\.test"):
        conversation.begin("", system="", tokens_max=1, temperature=None)


def test_a_gateway_that_nobody_knows():
    with pytest.raises(NotFound, match="find the gateway"):
        Talk(Credentials(api_key="x"))
