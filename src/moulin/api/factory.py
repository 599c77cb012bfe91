"""The declared factory: read it, or make it equal to an operator file."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from moulin.api.access import Allow
from moulin.api.describe import described
from moulin.api.exchange import checked, in_thread, read_value, respond
from moulin.api.state import state_of
from moulin.controlplane.commands import Applied, ApplyFactory
from moulin.domain.control import ApplyWanted, DeclaredWanted, FactoryPage
from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import TYPE_BY_KIND, DeclaredObject, ObjectKind
from moulin.domain.principal import Principal
from moulin.domain.views import DeclaredView
from moulin.identity import Action, Reach, reach

router = APIRouter(tags=["factory"])
Reader = Annotated[Principal, Depends(Allow(Action.FACTORY_READ))]
Applier = Annotated[Principal, Depends(Allow(Action.FACTORY_APPLY))]

# What tenants share: where work can run, on what, at which price.
_SHARED = frozenset(
    {ObjectKind.MACHINE_CLASS, ObjectKind.SITE, ObjectKind.ZONE, ObjectKind.PRICE_BOOK}
)


@router.get("/factory", **described(FactoryPage))
async def read_factory(request: Request, principal: Reader) -> Response:
    """Return the declared objects; a tenant sees its own project and what all share."""
    found = await in_thread(state_of(request).services.store.declared)
    if reach(principal.role, Action.FACTORY_READ) is not Reach.FACTORY:
        found = [item for item in found if _is_visible(item, principal)]
    return respond(FactoryPage(items=tuple(found)))


@router.post("/factory/apply", **described(Applied, body=ApplyWanted))
async def apply_factory(request: Request, principal: Applier) -> Response:
    """Make the objects of one file equal to what it declares, all of it or nothing."""
    wanted = await read_value(request, ApplyWanted)
    command = ApplyFactory(
        principal=principal,
        managed_by=wanted.managed_by,
        objects=tuple(_declared(index, item) for index, item in enumerate(wanted.objects)),
        is_dry_run=wanted.is_dry_run,
    )
    return respond(await state_of(request).bridge.ask(command, Applied))


def _declared(index: int, item: DeclaredWanted) -> DeclaredObject:
    try:
        return cast("DeclaredObject", checked(TYPE_BY_KIND[item.kind], item.body))
    except InvalidSpec as error:
        path = f"objects.{index}.body.{error.details.get('path', '')}"
        raise InvalidSpec(
            f"{error.message} (in objects.{index})", hint=error.hint, details={"path": path}
        ) from None


def _is_visible(item: DeclaredView, principal: Principal) -> bool:
    if item.kind == ObjectKind.PROJECT:
        return item.name == principal.project and item.organisation == principal.organisation
    if item.kind == ObjectKind.ORGANISATION:
        return item.name == principal.organisation
    return item.kind in _SHARED
