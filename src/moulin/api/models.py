"""The catalogue and what this machine has of it; a fetch runs on and is asked after."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from moulin.api.access import Allow
from moulin.api.describe import described
from moulin.api.exchange import in_thread, read_value, respond
from moulin.api.parameters import ModelPath
from moulin.api.state import state_of
from moulin.catalog.lookup import is_file_name as is_file_source
from moulin.domain.control import FetchStatus, FetchWanted, ModelInfo, ModelPage
from moulin.domain.errors import Forbidden
from moulin.domain.principal import Principal, Role
from moulin.identity import Action

router = APIRouter(tags=["models"])
Reader = Annotated[Principal, Depends(Allow(Action.MODEL_READ))]
Fetcher = Annotated[Principal, Depends(Allow(Action.MODEL_FETCH))]


@router.get("/models", **described(ModelPage))
async def list_models(request: Request, principal: Reader) -> Response:
    """Return the catalogue."""
    found = await in_thread(state_of(request).services.shelf.models)
    return respond(ModelPage(items=tuple(found)))


@router.get("/models/{model}", **described(ModelInfo))
async def read_model(request: Request, model: ModelPath, principal: Reader) -> Response:
    """Return one entry with how far its fetch is."""
    return respond(await in_thread(state_of(request).services.shelf.model, model))


@router.post("/models/{model}/fetch", **described(FetchStatus, body=FetchWanted, status=202))
async def fetch_model(request: Request, model: ModelPath, principal: Fetcher) -> Response:
    """Start fetching a model unless it is here; ask for the model to see progress."""
    wanted = await read_value(request, FetchWanted)
    if is_file_source(wanted.source) and principal.role is not Role.OPERATOR:
        raise Forbidden(
            f"add a file of the control plane's machine as {model}: only an operator may",
            hint="use the operator's key, or a model of the catalogue",
        )
    return respond(await in_thread(state_of(request).services.shelf.fetch, model, wanted), 202)
