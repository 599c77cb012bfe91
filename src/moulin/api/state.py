"""What one running API shares between requests, found through the application."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import HTTPConnection

from moulin.api.bridge import Bridge
from moulin.api.doors import Doors
from moulin.api.experience import Experience
from moulin.api.gateways import Gateways
from moulin.api.metrics import Metrics
from moulin.api.news import News
from moulin.api.services import ApiServices
from moulin.api.sums import UsageSums


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiState:
    """The services and what is made from them once."""

    services: ApiServices
    bridge: Bridge
    metrics: Metrics
    news: News
    sums: UsageSums
    gateways: Gateways
    experience: Experience
    doors: Doors


def make_state(services: ApiServices) -> ApiState:
    """Return the shared state of a new API."""
    limits = services.limits
    return ApiState(
        services=services,
        bridge=Bridge(services.call, limits.answer_wait_s),
        metrics=Metrics(services.version),
        news=News(services.store.last_sequence, limits.news_period_s),
        sums=UsageSums(services.store, services.keyring),
        gateways=Gateways(),
        experience=Experience(services.store),
        doors=Doors(limits.sessions_max, limits.project_sessions_max),
    )


def state_of(request: HTTPConnection) -> ApiState:
    """Return the state of the application that serves this request or connection."""
    return cast("ApiState", request.app.state.moulin)
