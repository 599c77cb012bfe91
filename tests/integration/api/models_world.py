"""What a stand-in for the catalogue has: a model that can be fetched, and one with terms."""

from collections.abc import Sequence
from dataclasses import replace

from moulin.catalog.entries import SMOLLM2_135M
from moulin.domain.control import FetchStatus, FetchWanted, ModelInfo
from moulin.domain.errors import UnknownName
from moulin.domain.model import Model

TERMS = {"gated": "gated-terms"}


class Shelf:
    """A catalogue of models whose fetch moves on each time somebody looks; one has terms."""

    def __init__(self) -> None:
        self.states = {name: FetchStatus(state="absent") for name in ("tiny", "gated")}

    def models(self) -> Sequence[ModelInfo]:
        return (self.model("tiny"),)

    def model(self, name: str) -> ModelInfo:
        if name not in self.states:
            raise UnknownName(f"find model {name!r}", hint="did you mean tiny?")
        seen = self.states[name]
        if seen.state == "fetching":
            done = min(seen.total_bytes, seen.done_bytes + 40)
            state = "ready" if done == seen.total_bytes else "fetching"
            self.states[name] = replace(seen, done_bytes=done, state=state)
        return ModelInfo(
            name=name,
            title="Tiny",
            publisher="nobody",
            licence="CC0",
            licence_url="",
            card="",
            parameters=1,
            context_max_tokens=8,
            variants=(),
            fetch=seen,
            licence_terms=TERMS.get(name, ""),
        )

    def entry(self, name: str) -> Model:
        if name not in self.states:
            raise UnknownName(f"find model {name!r}", hint="did you mean tiny?")
        return replace(SMOLLM2_135M, name=name, licence_terms=TERMS.get(name, ""))

    def fetch(self, name: str, wanted: FetchWanted) -> FetchStatus:
        self.model(name)
        if wanted.variant == "broken":
            failed = FetchStatus(
                state="failed", code="digest_mismatch", message="fetch tiny", hint="try again"
            )
            self.states[name] = failed
        elif self.states[name].state != "ready":
            self.states[name] = FetchStatus(state="fetching", stage="downloading", total_bytes=100)
        return self.states[name]
