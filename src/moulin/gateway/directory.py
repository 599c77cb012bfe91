"""A snapshot made quick to ask: which key is this, which model does it name, who may serve it.

It decides authentication, visibility and jurisdiction for one snapshot; a new snapshot makes a new
directory, so nothing cached outlives a revocation. It never keeps a key's text beyond its cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import orjson

from moulin.domain.errors import Forbidden, MoulinError, NotFound
from moulin.domain.reasons import Reason, sentence
from moulin.domain.snapshot import AliasView, GatewaySnapshot, KeyView, ModelView, ProjectView
from moulin.gateway.accounts import Account
from moulin.gateway.fleet import Fleet
from moulin.gateway.quotas import Guard, Quotas
from moulin.gateway.upstream import Replica
from moulin.identity.keys import KEY_CHARACTERS_MAX, digest, unauthenticated
from moulin.identity.passes import read_pass
from moulin.routing.aliases import headers_of, is_over, successor_of, target_of
from moulin.routing.replicas import forbidden_reason, is_permitted, narrowing

KEY_CACHE_MAX: Final = 20_000
WAYS_MAX: Final = 256
_BEARER: Final = b"bearer "


@dataclass(frozen=True, slots=True)
class Route:
    """One key's way to one model; `fragment` is what its journal lines have in common, as JSON.

    `fleet` is None where there is no choice. `where` are the countries that the request allows,
    empty for all its key may use; `alias` is the name it came by, `fallbacks` the models that may
    serve instead, `headers` what the answer says of all this, as finished lines. `marks` are of the
    one request that goes this way.
    """

    model: ModelView
    replicas: tuple[Replica, ...]
    account: Account
    fragment: bytes
    digest: str
    snapshot: GatewaySnapshot
    guard: Guard | None = None
    fleet: Fleet | None = None
    where: tuple[str, ...] = ()
    alias: AliasView | None = None
    fallbacks: tuple[ModelView, ...] = ()
    headers: bytes = b""
    marks: bytes = b""

    def marked(self, marks: bytes) -> "Route":
        """Return the way of a request of which the journal says more, in members as JSON.

        That is the line of a batch it carries out, and its user.
        """
        if not marks:
            return self
        return replace(self, marks=self.marks + marks, fragment=self.fragment + marks)


class Wish(NamedTuple):
    """What a request asks of its way beyond a name: its narrowing header, its id, its time in ns."""

    where: bytes
    identifier: bytes
    now_ns: int


class Caller:
    """A key of this snapshot and the routes found for it so far."""

    __slots__ = ("routes", "snapshot", "view", "ways")

    def __init__(self, view: KeyView, snapshot: GatewaySnapshot) -> None:
        self.view = view
        self.snapshot = snapshot
        self.routes: dict[str, Route] = {}
        self.ways: dict[tuple[str, str, tuple[str, ...]], Route] = {}


class PassCaller(Caller):
    """Moulin's own work, with the rights of a key: it carries out lines of batches."""

    __slots__ = ()


class Directory:
    """What one snapshot says."""

    def __init__(
        self,
        snapshot: GatewaySnapshot,
        pepper: bytes,
        replicas: dict[str, Replica],
        accounts: dict[str, Account],
        quotas: Quotas,
        *,
        fleets: dict[str, Fleet],
    ) -> None:
        self.snapshot = snapshot
        self._pepper = pepper
        self._replicas = replicas
        self._accounts = accounts
        self._quotas = quotas
        self._fleets = fleets
        self._aliases = {(view.project, view.name): view for view in snapshot.aliases}
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
            route = self._make_route(caller.view, name)
            if self._alias_of(caller.view, name) is None:  # what is here is found before an alias
                caller.routes[name] = route
        return route

    def find_route(self, caller: Caller, name: str, wish: Wish) -> Route:
        """Return the way of a request whose name may be an alias or which narrows where it goes.

        Raises what `route` raises, `NotFound` also for a name that has ended, and `InvalidRequest`
        for a header that names no countries.
        """
        where = narrowing(wish.where.decode("latin-1")) if wish.where else ()
        alias = self._alias_of(caller.view, name)
        if alias is None and not where:
            return self.route(caller, name)
        target = name if alias is None else self._target(caller.view, alias, wish)
        key = (name, target, where)
        route = caller.ways.get(key)
        if route is None:
            route = self._make_route(caller.view, target, where=where, alias=alias)
            if len(caller.ways) >= WAYS_MAX:  # clients choose the headers
                caller.ways.clear()
            caller.ways[key] = route
        return route

    def renew_route(self, caller: Caller, route: Route) -> Route:
        """Return a route as this snapshot has it, to the same model; raises what `route` raises."""
        if route.alias is None and not route.where:
            return self.route(caller, route.model.name)
        name = route.model.name
        return self._make_route(caller.view, name, where=route.where, alias=route.alias)

    def fallback_route(self, caller: Caller, route: Route, name: str) -> Route | None:
        """Return the way to a model that serves instead of another, None where there is none."""
        try:
            found = self._make_route(caller.view, name, where=route.where)
        except MoulinError:
            return None
        return replace(found, alias=route.alias, headers=headers_of(route.alias, name))

    def visible_models(self, caller: Caller) -> Iterator[ModelView]:
        """Yield the models a key may use, by name, then the aliases that lead to one."""
        for models in self._models.values():
            model = _preferred(models, caller.view)
            if model is not None:
                yield model
        for _, alias in sorted(self._aliases.items()):
            if alias.name not in self._models and self._alias_of(caller.view, alias.name) is alias:
                usable = self._usable(caller.view, alias)
                if usable:
                    yield replace(next(iter(usable.values())), name=alias.name)

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
        text = token.decode("latin-1")
        caller = self._callers.get(digest(self._pepper, text)) or self._passed(text)
        if caller is None:
            raise unauthenticated()
        if len(self._by_authorization) >= KEY_CACHE_MAX:
            self._by_authorization.clear()
        self._by_authorization[authorization] = caller
        return caller

    def _alias_of(self, key: KeyView, name: str) -> AliasView | None:
        """Return the alias of a name, the project's own before everybody's."""
        if not self._aliases:
            return None
        return self._aliases.get((key.project, name)) or self._aliases.get(("", name))

    def _usable(self, key: KeyView, alias: AliasView) -> dict[str, ModelView]:
        """Return the targets a key may use through an alias; a key's models are names, not targets."""
        if key.models and alias.name not in key.models:
            return {}
        open_key = replace(key, models=())
        found = {
            target.model: _preferred(self._models.get(target.model, ()), open_key)
            for target in alias.targets
        }
        return {name: model for name, model in found.items() if model is not None}

    def _target(self, key: KeyView, alias: AliasView, wish: Wish) -> str:
        if is_over(alias, wish.now_ns):
            raise NotFound(
                f"use {alias.name}: this name has ended",
                hint=f"use {successor_of(alias)} instead",
                details={"param": "model", "code": "model_not_found"},
            )
        usable = self._usable(key, alias)
        target = target_of(alias, usable, wish.identifier)
        if target is None:
            return self._model_of(
                key, alias.name
            ).name  # a model of the alias's own name, or why not
        return target

    def _passed(self, shown: str) -> Caller | None:
        key = read_pass(self._pepper, shown)
        if key is None:
            return None
        found = next((view for view in self.snapshot.keys if view.id == key), None)
        return PassCaller(found, self.snapshot) if found is not None else None

    def _make_route(
        self,
        key: KeyView,
        name: str,
        *,
        where: tuple[str, ...] = (),
        alias: AliasView | None = None,
    ) -> Route:
        model = (self._usable(key, alias).get(name) if alias else None) or self._model_of(key, name)
        project = self._projects.get(key.project) or ProjectView(
            name=key.project, organisation=key.organisation
        )
        restrictions = (key.countries, project.countries, where)
        permitted = tuple(
            self._replicas[view.attempt]
            for view in model.replicas
            if is_permitted(view, restrictions)
        )
        if model.replicas and not permitted:
            reasons = [forbidden_reason(view, restrictions) for view in model.replicas]
            what = "request" if where else "key"
            raise Forbidden(
                f"use this model where this {what} may be served: {_joined(reasons)}",
                hint=f"use a {what} or a project without this restriction, or another model",
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
            self._quotas.guard(key, project, self._pepper),
            self._fleets[model.endpoint] if len(permitted) > 1 or model.fallbacks else None,
            where,
            alias,
            tuple(self._fallbacks(key, model)),
            headers_of(alias, model.name) if alias is not None else b"",
        )

    def _fallbacks(self, key: KeyView, model: ModelView) -> Iterator[ModelView]:
        for name in model.fallbacks:
            other = _preferred(self._models.get(name, ()), key)
            if other is None or other.endpoint == model.endpoint:
                continue
            if other.ability is model.ability:
                yield other


def _preferred(models: Sequence[ModelView], key: KeyView) -> ModelView | None:
    """Return the project's own model of a name before a public one."""
    if key.models and models and models[0].name not in key.models:
        return None
    own = next((model for model in models if model.project == key.project), None)
    return own or next((model for model in models if model.is_public), None)


def _joined(reasons: Sequence[Reason]) -> str:
    return "; ".join(sorted({sentence(reason) for reason in reasons}))
