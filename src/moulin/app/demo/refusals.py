"""Step 5: what a factory must say no to: a zone that is not open, a country, a spent budget."""

from typing import Any, Final

from moulin.app.demo.stage import NotAsPromised, Stage, issue_key, promise, wait_until
from moulin.domain.errors import Refused
from moulin.domain.reasons import ReasonCode, sentence
from moulin.domain.units import format_euros
from moulin.domain.views import BalanceView, ReceiptView
from moulin.domain.workload import TaskTemplate, Where, WorkloadKind, WorkloadSpec

ZONE_BUILDING: Final = "hall-b"
COUNTRY_ABSENT: Final = "SE"
POOR_PROJECT: Final = "interns"
QUESTIONS_MAX: Final = 50
TOKENS_OUTPUT: Final = 24
SETTLE_S: Final = 20.0
QUESTION: Final = "In one short sentence: what does a mill do?"


def refuse(stage: Stage) -> dict[str, Any]:
    """Ask for three things the factory must not give, and show its reasons.

    Raises `NotAsPromised` when it gives one of them.
    """
    waiting = _wait_for_a_building_zone(stage)
    forbidden = _refuse_a_country(stage)
    return {"waiting": waiting, "forbidden": forbidden, **_spend_a_budget(stage)}


def _wait_for_a_building_zone(stage: Stage) -> str:
    screen = stage.screen
    screen.say(f"A job that wants zone {ZONE_BUILDING}, which is still being built:")
    view = stage.as_tenant.workloads.submit(_job("wants-hall-b", Where(zones=(ZONE_BUILDING,))))
    reasons = stage.as_tenant.workloads.why(view.id).reasons
    promise(
        any(reason.code is ReasonCode.ZONE_NOT_OPEN for reason in reasons),
        f"a job for zone {ZONE_BUILDING} is {view.state} and does not wait for it to open",
    )
    words = "; ".join(map(sentence, reasons))
    screen.good(f"it waits: {words}")
    stage.as_tenant.workloads.stop(view.id)
    return words


def _refuse_a_country(stage: Stage) -> str:
    screen = stage.screen
    screen.say(f"A job that may only run in {COUNTRY_ABSENT}:")
    try:
        view = stage.as_tenant.workloads.submit(
            _job("wants-sweden", Where(countries=(COUNTRY_ABSENT,)))
        )
    except Refused as refusal:
        screen.good(f"refused: {refusal.message}")
        return refusal.message
    raise NotAsPromised(f"a job that may only run in {COUNTRY_ABSENT} is {view.state}")


def _spend_a_budget(stage: Stage) -> dict[str, Any]:
    from openai import APIStatusError, OpenAI

    screen = stage.screen
    limit_neur = _balance(stage).budget_neur
    screen.gap()
    screen.say(
        f"Project {POOR_PROJECT} has {format_euros(limit_neur)} €, and asks the model until it is stopped:"
    )
    secret = issue_key(stage, stage.as_operator, "questions", POOR_PROJECT)
    answered, refusal = 0, ""
    with (
        OpenAI(base_url=stage.gateway_url, api_key=secret, max_retries=0) as client,
        screen.progress("asking") as meter,
    ):
        while not refusal and answered < QUESTIONS_MAX:
            try:
                answer = client.chat.completions.create(
                    model=stage.wanted.model,
                    max_tokens=TOKENS_OUTPUT,
                    messages=[{"role": "user", "content": QUESTION}],
                )
            except APIStatusError as stopped:
                promise(stopped.status_code == 402, f"stopped with HTTP {stopped.status_code}")
                refusal = str(getattr(stopped, "body", None) and stopped.body["message"])  # type: ignore[index]
            else:
                answered += 1
                meter.update("asking", answered)
                first = answer.choices[0].message.content if answered == 1 else ""
                if first:
                    screen.quiet(f"“{QUESTION}” “{' '.join(first.split())}…”")
    promise(bool(refusal), f"{answered} questions and no end to the budget")
    screen.good(f"{answered} answers, then HTTP 402: {refusal}")
    with screen.progress("the metering interval closes"):
        wait_until(
            lambda: len(_receipts(stage)) == answered, SETTLE_S, f"{answered} receipts are issued"
        )
    charged_neur = sum(receipt.charge.amount_neur for receipt in _receipts(stage))
    spent_neur = _balance(stage).spent_neur
    promise(charged_neur == spent_neur, "the project's balance and its receipts disagree")
    promise(0 < spent_neur <= limit_neur, "the project spent more than its budget, or nothing")
    screen.good(
        f"its {answered} receipts say {format_euros(charged_neur)} €, its balance the same: "
        f"not more than {format_euros(limit_neur)} €"
    )
    return {
        "answered": answered,
        "refusal": refusal,
        "spent_neur": str(spent_neur),
        "budget_neur": str(limit_neur),
    }


def _job(name: str, where: Where) -> WorkloadSpec:
    return WorkloadSpec(
        kind=WorkloadKind.JOB,
        name=name,
        task=TaskTemplate(command=("true",)),
        where=where,
        time_limit_s=60,
    )


def _balance(stage: Stage) -> BalanceView:
    balances = stage.as_operator.status().balances
    return next(each for each in balances if each.project == POOR_PROJECT)


def _receipts(stage: Stage) -> tuple[ReceiptView, ...]:
    return stage.as_operator.receipts.page(project=POOR_PROJECT, limit=1_000).items
