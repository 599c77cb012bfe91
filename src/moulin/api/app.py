"""Puts the control API together: routes, problem documents, the outermost ring, the description.

Nothing is decided here; `services` is everything the routes may touch.
"""

from typing import Any, Final

from fastapi import APIRouter, FastAPI
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp

from moulin.api import (
    batches,
    bundles,
    describe,
    events,
    factory,
    gateway,
    keys,
    leases,
    models,
    nodes,
    objects,
    problems,
    receipts,
    registrations,
    secrets,
    sessions,
    status,
    workloads,
)
from moulin.api.edge import Edge
from moulin.api.express import Express
from moulin.api.services import ApiServices
from moulin.api.state import ApiState, make_state

ROUTERS: Final[tuple[APIRouter, ...]] = (
    status.router,
    nodes.router,
    workloads.router,
    leases.router,
    events.router,
    factory.router,
    keys.router,
    receipts.router,
    models.router,
    objects.router,
    batches.router,
    secrets.router,
    bundles.router,
    gateway.router,
    registrations.router,
    sessions.router,
)


def create_app(services: ApiServices) -> FastAPI:
    """Return the ASGI application of the control API; `app.state.moulin` is its shared state."""
    app = _Application(
        title="Moulin",
        version=services.version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours: `metrics`, the log
    )
    state = make_state(services)
    app.state.moulin = state
    app.include_router(status.open_router)
    for router in ROUTERS:
        app.include_router(router, prefix=describe.PREFIX)
    problems.install(app)
    return app


class _Application(FastAPI):
    """FastAPI with the description made by `describe`, once, and our ring around all of it."""

    def build_middleware_stack(self) -> ASGIApp:
        """Return the stack with the ring outside the library's own, which a submission need not pass."""
        state: ApiState = self.state.moulin
        services = state.services
        stack = super().build_middleware_stack()
        # The library's last ring answers a bug with a bare line; ours answers it as a problem.
        routed = stack.app if isinstance(stack, ServerErrorMiddleware) else stack
        return Edge(
            Express(routed),
            clock=services.clock,
            ids=services.ids,
            metrics=state.metrics,
            body_bytes_max=services.limits.body_bytes_max,
            upload_bytes_max=services.limits.upload_bytes_max,
        )

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            self.openapi_schema = describe.document(self, self.version)
        return self.openapi_schema
