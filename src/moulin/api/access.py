"""Who calls, and whether the route and the object are theirs: one dependency per route.

A role that may never do the action gets 403, whatever the object. An object of another project
gets 404, the same as one that does not exist.
"""

from typing import Final

from fastapi import Request
from starlette.requests import HTTPConnection

from moulin.api.state import ApiState, state_of
from moulin.domain.errors import Forbidden, NotFound
from moulin.domain.principal import Principal
from moulin.identity import Action, Reach, Rejection, examine, permits, reach
from moulin.identity.keys import principal_of, unauthenticated

_SCHEME: Final = "bearer "


class Allow:
    """The dependency that guards a route: it names the action and yields the principal."""

    def __init__(self, action: Action) -> None:
        self.action = action

    async def __call__(self, request: Request) -> Principal:
        """Return the caller.

        Raises `Unauthenticated`, `Forbidden` for a role that lacks the action, and `NotFound`
        when the route names another project.
        """
        principal = allowed(request, self.action)
        project = request.path_params.get("project")
        if project is not None:
            require_project(principal, self.action, project)
        return principal


def allowed(connection: HTTPConnection, action: Action) -> Principal:
    """Return who calls; raises `Unauthenticated`, and `Forbidden` for a role that lacks the action."""
    principal = _identify(connection, state_of(connection))
    if reach(principal.role, action) is Reach.NONE:
        raise Forbidden(
            f"{action}: a key of role {principal.role} may not do this",
            hint="use a key of another role; the project's admin can issue one",
            details={"role": principal.role.value, "action": action.value},
        )
    return principal


def require_project(principal: Principal, action: Action, project: str) -> None:
    """Raise `NotFound` unless the caller may do `action` in the project."""
    if not permits(principal, action, project, principal.organisation):
        raise NotFound(
            f"find project {project!r}: you have no such project", details={"project": project}
        )


def require_owner(principal: Principal, action: Action, owner: tuple[str, str], what: str) -> None:
    """Raise `NotFound` unless the caller may do `action` to an object of (project, organisation)."""
    if not permits(principal, action, *owner):
        raise missing(what)


def missing(what: str) -> NotFound:
    """Return the one answer for what does not exist and for what is not the caller's."""
    return NotFound(f"find {what}: you have nothing of that name", details={"name": what})


def own_project(principal: Principal, action: Action, wanted: str) -> str:
    """Return the project a list is limited to: the wanted one, or the only one the caller has.

    Empty means all projects. Raises `NotFound` when another's is wanted.
    """
    if reach(principal.role, action) is Reach.FACTORY:
        return wanted
    if wanted:
        require_project(principal, action, wanted)
    if not principal.project:
        # A project role without a project has nothing; no name matches it either.
        raise missing("a project of this key")
    return principal.project


def _identify(request: HTTPConnection, state: ApiState) -> Principal:
    shown = request.headers.get("authorization", "")
    credential = shown[len(_SCHEME) :].strip() if shown[: len(_SCHEME)].lower() == _SCHEME else ""
    services = state.services
    found = examine(
        credential, services.keyring().by_digest, services.clock.now_ns(), services.pepper
    )
    if isinstance(found, Rejection):
        state.metrics.reject(found)
        raise unauthenticated()
    return principal_of(found)
