"""A snapshot made quick to ask: which key is this, which model does it name, who may serve it.

It decides authentication, visibility and jurisdiction for one snapshot; a new snapshot makes a new
directory, so nothing cached outlives a revocation. It never keeps a key's text beyond its cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import orjson

from moulin.domain.errors import Forbidden, NotFound
from moulin.domain.reasons import Reason, sentence
from moulin.domain.snapshot import GatewaySnapshot, KeyView, ModelView, ProjectView
from moulin.gateway.accounts import Account
from moulin.gateway.quotas import Guard, Quotas
from moulin.gateway.upstream import Replica
from moulin.identity.keys import KEY_CHARACTERS_MAX, digest, unauthenticated
from moulin.routing.replicas import forbidden_reason, is_permitted

KEY_CACHE_MAX: Final = 20_000
_BEARER: Final = b"bearer "


class Route(NamedTuple):
    """One key's way to one model; `fragment` is what its journal lines have in common, as JSON."""

    model: ModelView
    replicas: tuple[Replica, ...]
    account: Account
    fragment: bytes
    digest: str
    snapshot: GatewaySnapshot
    guard: Guard | None = None


class Caller:
    """A key of this snapshot and the routes found for it so far."""

    __slots__ = ("routes", "snapshot", "view")

    def __init__(self, view: KeyView, snapshot: GatewaySnapshot) -> None:
        self.view = view
        self.snapshot = snapshot
        self.routes: dict[str, Route] = {}


class Directory:
    """What one snapshot says."""

    def __init__(
        self,
        snapshot: GatewaySnapshot,
        pepper: bytes,
        replicas: dict[str, Replica],
        accounts: dict[str, Account],
        quotas: Quotas,
    ) -> None:
        self.snapshot = snapshot
        self._pepper = pepper
        self._replicas = replicas
        self._accounts = accounts
        self._quotas = quotas
        self._callers = {view.digest: Caller(view, snapshot) for view in snapshot.keys}
        self._projects = {view.name: view for view in snapshot.projects}
        self._by_authorization: dict[bytes, Caller] = {}
        self._models: dict[str, list[ModelView]] = {}
        for model in sorted(snapshot.models, key=lambda model: (model.name, model.endpoint)):
            self._models.setdefault(model.name, []).append(model)

    def authenticate(self, authorization: bytes, now_ns: Callable[[], int]) -> Caller:
        """Return whose key an `Authorization` header shows; the clock is read for keys that expire.

        Raises `Unauthenticated`, the same for every reason.
        """
        caller = self._by_authorization.get(authorization)
        if caller is None:
            caller = self._look_up(authorization)
        expires_at_ns = caller.view.expires_at_ns
        if expires_at_ns and now_ns() >= expires_at_ns:
            raise unauthenticated()
        return caller

    def renew(self, caller: Caller, now_ns: Callable[[], int]) -> Caller:
        """Return the key as this snapshot has it; raises `Unauthenticated` when it has it no more."""
        if caller.snapshot is self.snapshot:
            return caller
        return self.find(caller.view.digest, now_ns)

    def find(self, key_digest: str, now_ns: Callable[[], int]) -> Caller:
        """Return the key with this digest; raises `Unauthenticated` when it is gone or expired."""
        caller = self._callers.get(key_digest)
        if caller is None or 0 < caller.view.expires_at_ns <= now_ns():
            raise unauthenticated()
        return caller

    def route(self, caller: Caller, name: str) -> Route:
        """Return the caller's way to the model called `name`.

        Raises `NotFound` for a model the key may not see, and `Forbidden` when every replica is
        in a country it may not use.
        """
        route = caller.routes.get(name)
        if route is None:
            route = caller.routes[name] = self._make_route(caller.view, name)
        return route

    def visible_models(self, caller: Caller) -> Iterator[ModelView]:
        """Yield the models a key may use, by name."""
        for models in self._models.values():
            model = _preferred(models, caller.view)
            if model is not None:
                yield model

    def model(self, caller: Caller, name: str) -> ModelView:
        """Return one model a key may use; raises `NotFound` for another."""
        return self._model_of(caller.view, name)

    def _model_of(self, key: KeyView, name: str) -> ModelView:
        known = self._models.get(name, ())
        model = _preferred(known, key)
        if model is None:
            if _preferred(known, replace(key, models=())) is not None:
                raise Forbidden(
                    f"use model {name}: this key may only use {', '.join(key.models)}",
                    hint="use one of them, or a key without this restriction",
                    details={"param": "model"},
                )
            raise NotFound(
                "use this model: the key has no model of that name",
                hint="GET /v1/models lists the models of a key",
                details={"param": "model", "code": "model_not_found"},
            )
        return model

    def _look_up(self, authorization: bytes) -> Caller:
        token = authorization[len(_BEARER) :].strip()
        if authorization[: len(_BEARER)].lower() != _BEARER or len(token) > KEY_CHARACTERS_MAX:
            raise unauthenticated()
        caller = self._callers.get(digest(self._pepper, token.decode("latin-1")))
        if caller is None:
            raise unauthenticated()
        if len(self._by_authorization) >= KEY_CACHE_MAX:
            self._by_authorization.clear()
        self._by_authorization[authorization] = caller
        return caller

    def _make_route(self, key: KeyView, name: str) -> Route:
        model = self._model_of(key, name)
        project = self._projects.get(key.project) or ProjectView(
            name=key.project, organisation=key.organisation
        )
        restrictions = (key.countries, project.countries)
        permitted = tuple(
            self._replicas[view.attempt]
            for view in model.replicas
            if is_permitted(view, restrictions)
        )
        if model.replicas and not permitted:
            reasons = [forbidden_reason(view, restrictions) for view in model.replicas]
            raise Forbidden(
                f"use this model where this key may be served: {_joined(reasons)}",
                hint="use a key or a project without this restriction, or another model",
            )
        fragment = orjson.dumps(
            {
                "organisation": key.organisation,
                "project": key.project,
                "key": key.id,
                "model": model.name,
                "endpoint": model.endpoint,
            }
        )[1:-1]
        return Route(
            model,
            permitted,
            self._accounts[key.project],
            fragment,
            key.digest,
            self.snapshot,
            self._quotas.guard(key, project),
        )


def _preferred(models: Sequence[ModelView], key: KeyView) -> ModelView | None:
    """Return the project's own model of a name before a public one."""
    if key.models and models and models[0].name not in key.models:
        return None
    own = next((model for model in models if model.project == key.project), None)
    return own or next((model for model in models if model.is_public), None)


def _joined(reasons: Sequence[Reason]) -> str:
    return "; ".join(sorted({sentence(reason) for reason in reasons}))
