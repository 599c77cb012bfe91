"""The catalogue, what this machine has of it, where it fits and what it costs; licences accepted."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final, cast

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from moulin.api.access import Allow
from moulin.api.describe import described
from moulin.api.exchange import in_thread, read_value, respond
from moulin.api.outlook import Surroundings, explain_price, fit_model
from moulin.api.parameters import ModelPath, ProjectPath
from moulin.api.services import ApiServices
from moulin.api.state import ApiState, state_of
from moulin.catalog.fit import Machine
from moulin.catalog.lookup import is_address
from moulin.catalog.machines import MACHINE_CLASSES, THIS_MACHINE
from moulin.controlplane.commands import AcceptLicence
from moulin.controlplane.submit import refusal
from moulin.domain.control import FetchStatus, FetchWanted, LicenceWanted, ModelInfo, ModelPage
from moulin.domain.errors import Forbidden, InvalidRequest
from moulin.domain.factory import (
    TYPE_BY_KIND,
    DeclaredObject,
    MachineClass,
    ObjectKind,
    Pool,
    PriceBook,
    Site,
    Zone,
)
from moulin.domain.ids import ProjectId
from moulin.domain.model import Model
from moulin.domain.outlook import ModelFit, PriceExplained
from moulin.domain.principal import Principal, Role
from moulin.domain.terms import LicenceAcceptance, not_served
from moulin.domain.views import DeclaredView
from moulin.domain.wire import decode
from moulin.identity import Action

CONTEXT_DEFAULT: Final = 4096
USED_KINDS: Final = (
    ObjectKind.MACHINE_CLASS,
    ObjectKind.SITE,
    ObjectKind.ZONE,
    ObjectKind.POOL,
    ObjectKind.PRICE_BOOK,
)

router = APIRouter(tags=["models"])
Reader = Annotated[Principal, Depends(Allow(Action.MODEL_READ))]
Fetcher = Annotated[Principal, Depends(Allow(Action.MODEL_FETCH))]
Accepter = Annotated[Principal, Depends(Allow(Action.LICENCE_ACCEPT))]


@router.get("/models", **described(ModelPage))
async def list_models(request: Request, principal: Reader) -> Response:
    """Return the catalogue."""
    services = state_of(request).services
    found = await in_thread(services.shelf.models)
    return respond(ModelPage(items=tuple(_seen_by(principal, services, each) for each in found)))


@router.get("/models/{model}", **described(ModelInfo))
async def read_model(request: Request, model: ModelPath, principal: Reader) -> Response:
    """Return one entry: its card, its licence and life, and how far its fetch is."""
    services = state_of(request).services
    found = await in_thread(services.shelf.model, model)
    return respond(_seen_by(principal, services, found))


@router.get("/models/{model}/fit", **described(ModelFit))
async def fit(
    request: Request,
    model: ModelPath,
    principal: Reader,
    *,
    context_tokens: Annotated[int, Query(ge=0, le=10**8)] = 0,
    parallel_requests: Annotated[int, Query(ge=1, le=256)] = 1,
) -> Response:
    """Return where a model fits: memory, longest context, speed, price, energy and carbon.

    `context_tokens` 0 means 4096, or what the model has if that is less.
    """
    state = state_of(request)

    def read() -> ModelFit:
        entry = state.services.shelf.entry(model)
        longest = entry.architecture.context_max_tokens
        context = context_tokens or min(CONTEXT_DEFAULT, longest)
        return fit_model(entry, context, parallel_requests, _around(state, principal, entry))

    return respond(await in_thread(read))


@router.get("/models/{model}/price", **described(PriceExplained))
async def price(
    request: Request,
    model: ModelPath,
    principal: Reader,
    *,
    tokens_input: Annotated[int, Query(ge=0, le=10**9)] = 1000,
    tokens_output: Annotated[int, Query(ge=0, le=10**9)] = 500,
) -> Response:
    """Return how a request of that many tokens is priced now, with its energy and carbon by zone."""
    state = state_of(request)

    def read() -> PriceExplained:
        entry = state.services.shelf.entry(model)
        tokens = (tokens_input, tokens_output)
        return explain_price(entry, tokens, _around(state, principal, entry))

    return respond(await in_thread(read))


@router.post(
    "/projects/{project}/licences",
    **described(LicenceAcceptance, body=LicenceWanted, status=201),
)
async def accept_licence(request: Request, project: ProjectPath, principal: Accepter) -> Response:
    """Accept a model's licence for the project's organisation; once is as good as twice."""
    state = state_of(request)
    wanted = await read_value(request, LicenceWanted)
    entry = await in_thread(state.services.shelf.entry, wanted.model)
    if wanted.licence != entry.licence_terms:
        raise InvalidRequest(
            f"accept {wanted.licence!r} for {entry.name}: that is not the id of its terms",
            hint=f"its terms: {entry.licence_terms} ({entry.licence_url})"
            if entry.licence_terms
            else "nothing has to be accepted for it",
        )
    command = AcceptLicence(
        principal=principal,
        project=ProjectId(project),
        model=entry.name,
        licence=wanted.licence,
    )
    return respond(await state.bridge.ask(command, LicenceAcceptance), 201)


@router.post("/models/{model}/fetch", **described(FetchStatus, body=FetchWanted, status=202))
async def fetch_model(request: Request, model: ModelPath, principal: Fetcher) -> Response:
    """Start fetching a model unless it is here; ask for the model to see progress."""
    services = state_of(request).services
    wanted = await read_value(request, FetchWanted)
    is_new = is_address(wanted.source)
    if is_new and principal.role is not Role.OPERATOR:
        raise Forbidden(
            f"add {wanted.source} to the catalogue as {model}: only an operator may",
            hint="use the operator's key, or a model of the catalogue",
        )
    if not is_new:
        await in_thread(_check_terms, services, principal, model)
    return respond(await in_thread(services.shelf.fetch, model, wanted), 202)


def _check_terms(services: ApiServices, principal: Principal, model: str) -> None:
    """Raise `LicenceNotAccepted` or `Refused` before a byte of a model is fetched."""
    accepted = services.licences()
    terms = services.shelf.entry(model).terms
    organisations: list[str] = [principal.organisation] if principal.organisation else []
    if principal.role is Role.OPERATOR:
        organisations += sorted(of for of, licence in accepted if licence == terms.licence)
    now_ns = services.clock.now_ns()
    reasons = [not_served(terms, each, accepted, now_ns) for each in organisations or [""]]
    if None not in reasons:
        raise refusal(f"fetch {model}", [reason for reason in reasons if reason is not None][:1])


def _seen_by(principal: Principal, services: ApiServices, info: ModelInfo) -> ModelInfo:
    """Add who accepted the model's licence: the caller's organisation, or all for an operator."""
    found = services.licences() if info.licence_terms else {}
    own = [
        each
        for (organisation, licence), each in sorted(found.items())
        if licence == info.licence_terms
        and (principal.role is Role.OPERATOR or organisation == principal.organisation)
    ]
    return replace(info, accepted=tuple(own)) if own else info


def _around(state: ApiState, principal: Principal, model: Model) -> Surroundings:
    """Read what the factory declares; a tenant's figures come from its own organisation's requests."""
    services = state.services
    views = services.store.declared()
    declared = [_declared(view) for view in views if view.kind in USED_KINDS]
    is_operator = principal.role is Role.OPERATOR
    own = "" if is_operator else principal.organisation or "-"
    digests = [f"sha256:{variant.sha256}" for variant in model.variants if variant.sha256]
    return Surroundings(
        now_ns=services.clock.now_ns(),
        machines=_machines(services, declared),
        books=[each for each in declared if isinstance(each, PriceBook)],
        sites={each.name: each for each in declared if isinstance(each, Site)},
        zones={each.name: each for each in declared if isinstance(each, Zone)},
        pools=[each for each in declared if isinstance(each, Pool)],
        seen={digest: state.experience.read(digest, own) for digest in digests},
        is_operator=is_operator,
    )


def _machines(services: ApiServices, declared: Sequence[DeclaredObject]) -> Sequence[Machine]:
    """Return the shipped classes, as declared where they are, and this machine as it is."""
    own = {each.name: each for each in declared if isinstance(each, MachineClass)}
    classes = {**MACHINE_CLASSES, **own}
    return [
        services.machine() if name == THIS_MACHINE else Machine(machine_class=_filled(each))
        for name, each in classes.items()
    ]


def _filled(declared: MachineClass) -> MachineClass:
    """Give a class declared before bandwidths were known the registry's."""
    shipped = MACHINE_CLASSES.get(declared.name)
    if declared.memory_bytes_per_s or shipped is None:
        return declared
    key = "memory_bytes_per_s"
    return replace(
        declared,
        memory_bytes_per_s=shipped.memory_bytes_per_s,
        sources={**declared.sources, key: shipped.sources.get(key, "")},
    )


def _declared(view: DeclaredView) -> DeclaredObject:
    kind = ObjectKind(view.kind)
    return cast("DeclaredObject", decode(TYPE_BY_KIND[kind], view.body))
