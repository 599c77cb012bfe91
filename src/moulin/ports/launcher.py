"""How the control plane turns an endpoint's model into a program, without knowing any runtime."""

from dataclasses import dataclass
from typing import Protocol

from moulin.domain.model import Ability
from moulin.domain.plan import StartStep
from moulin.domain.terms import ModelTerms
from moulin.domain.workload import EndpointSpec, TaskTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """What a model's answers make a machine do: operations follow from parameters, reading from bytes."""

    parameters: int
    weights_bytes: int
    kv_bytes_per_token: int = 0
    ability: Ability = Ability.GENERATE


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What serving a model takes: memory per replica, and what is served: a variant by its digest.

    `work` is None where nobody knows what an answer takes.
    """

    name: str
    digest: str
    memory_bytes: int
    context_tokens: int
    variant: str = ""
    infill: tuple[str, ...] = ()
    ability: Ability = Ability.GENERATE
    terms: ModelTerms | None = None
    work: ModelWork | None = None


class Launcher(Protocol):
    """Knows which runtime serves a model and with which files."""

    def facts(self, endpoint: EndpointSpec) -> ModelFacts:
        """Return what one replica takes.

        Raises `UnknownName` for a model that is in no catalogue and `Refused` for one whose
        weights are not on this factory's disk yet.
        """
        ...

    def task(self, step: StartStep) -> TaskTemplate:
        """Return the program of one replica; everything secret it needs is in files."""
        ...

    def replica_key(self, attempt: str) -> str:
        """Return the key with which a gateway calls this replica, the same at every call."""
        ...
