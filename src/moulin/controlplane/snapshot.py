"""What gateways may know, read from the books: keys, endpoints with ready replicas, projects."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from moulin.controlplane.books import Books
from moulin.controlplane.expected import expected_energy
from moulin.controlplane.plane import Plane
from moulin.domain.factory import Alias, ObjectKind, Organisation, Price, PriceBook, Project, Site
from moulin.domain.limits import USER_LABEL, UserNames, UserRule
from moulin.domain.model import METERS_BY_ABILITY
from moulin.domain.objects import BATCH_FACTOR_PPM
from moulin.domain.principal import ApiKey, Role
from moulin.domain.snapshot import (
    AliasTarget,
    AliasView,
    GatewaySnapshot,
    KeyView,
    ModelView,
    ProjectView,
    ReplicaView,
    UsersView,
)
from moulin.domain.usage import Meter
from moulin.ledger import book_at, find_price
from moulin.scheduler import TaskRow, WorkloadRow, expected_start

INFERENCE_ROLES = frozenset({Role.OPERATOR, Role.ADMIN, Role.MEMBER, Role.INFERENCE})
TOKENS_OUTPUT_DEFAULT_MAX = 1024
NS_PER_S = 1_000_000_000


def build_snapshot(plane: Plane, books: Books, now_ns: int) -> GatewaySnapshot:
    """Return everything a gateway decides from; equal books give equal contents."""
    return GatewaySnapshot(
        version=books.sequence,
        issued_at_ns=now_ns,
        staleness_max_s=plane.settings.snapshot_staleness_s,
        keys=tuple(_keys(books)),
        models=tuple(
            _model(plane, books, books.schedule.workloads[endpoint], now_ns)
            for endpoint in sorted(books.endpoints)
        ),
        projects=tuple(_projects(books)),
        aliases=tuple(_aliases(books)),
    )


def _keys(books: Books) -> Iterator[KeyView]:
    for _, key in sorted(books.keyring.by_id.items()):
        if may_infer(key) and books.project(key.project) is not None:
            yield KeyView(
                id=key.id,
                digest=key.digest,
                organisation=key.organisation,
                project=key.project,
                models=key.models,
                countries=key.countries,
                expires_at_ns=key.expires_at_ns,
                line=key.line,
                rate=key.rate,
                allowances=books.allowances.names_of(key.organisation, key.project, key.id),
                users=_users(books, key),
            )


def _users(books: Books, key: ApiKey) -> UsersView | None:
    """Return how the users of a key are told apart, None where nobody asked for that."""
    project = books.project(key.project)
    rule = project.per_user if project is not None else UserRule()
    if not (rule.is_counted or key.per_user.is_set):
        return None
    return UsersView(
        user=key.labels.get(USER_LABEL, ""),
        keeps_names=rule.names is UserNames.STORED,
        allowances=books.allowances.users_of(key.project, key.id),
    )


def may_infer(key: ApiKey) -> bool:
    """Say whether gateways are told of a key: it may call models and is not revoked."""
    return key.role in INFERENCE_ROLES and key.revoked_at_ns == 0 and bool(key.project)


def _aliases(books: Books) -> Iterator[AliasView]:
    for (kind, name), item in sorted(books.declared.items()):
        if kind is ObjectKind.ALIAS and isinstance(item.value, Alias):
            yield AliasView(
                name=name,
                project=item.value.project,
                targets=tuple(
                    AliasTarget(model=model, weight=weight)
                    for model, weight in sorted(item.value.targets.items())
                ),
                deprecated_at_ns=item.value.deprecated_at_ns,
                sunset_at_ns=item.value.sunset_at_ns,
            )


def _projects(books: Books) -> Iterator[ProjectView]:
    for (kind, name), item in sorted(books.declared.items()):
        if kind is ObjectKind.PROJECT and isinstance(item.value, Project):
            owner = books.organisation(item.value.organisation) or Organisation(name="")
            yield ProjectView(
                name=name,
                organisation=item.value.organisation,
                countries=owner.countries,
                rate=item.value.rate,
                organisation_rate=owner.rate,
            )


def _model(plane: Plane, books: Books, row: WorkloadRow, now_ns: int) -> ModelView:
    spec = row.submission.spec
    endpoint = spec.endpoint
    serving = row.serving
    assert endpoint is not None  # `books.endpoints` holds endpoints only
    book = book_at(books.price_books(), now_ns)
    models = _served_models(row)
    prices = [_dearest(book, meter, models) for meter in METERS_BY_ABILITY[endpoint.ability]]
    price_input, price_output = (*prices, None)[:2]
    per_input = price_input.per if price_input else 1
    per_output = price_output.per if price_output else 1
    admission = books.cursors.admissions.get(row.submission.id)
    return ModelView(
        name=spec.name,
        endpoint=row.submission.id,
        project=row.submission.project,
        is_public=endpoint.is_public,
        context_tokens=endpoint.context_tokens,
        tokens_output_default=min(TOKENS_OUTPUT_DEFAULT_MAX, endpoint.context_tokens // 2),
        # One denominator for both prices keeps every amount exact.
        price_input_neur=(price_input.unit_price_neur * per_output) if price_input else 0,
        price_output_neur=(price_output.unit_price_neur * per_input) if price_output else 0,
        price_per=per_input * per_output,
        digest=admission.model_digest if admission else "",
        created_s=row.submission.submitted_at_ns // NS_PER_S,
        ability=endpoint.ability,
        infill=endpoint.infill,
        fallbacks=endpoint.fallbacks,
        batch_ppm=book.batch_ppm if book else BATCH_FACTOR_PPM,
        replicas=tuple(_replicas(plane, books, row)),
        cold_start_s=serving.scaling.cold_start_s if serving and serving.scaling else 0,
        load_s=-(-expected_start(books.schedule, row).whole_ns // NS_PER_S),
    )


def _served_models(row: WorkloadRow) -> tuple[str, ...]:
    """Return the models that replicas of an endpoint serve: two of them during a rollout."""
    specs = [row.submission.spec, *(row.spec_of(unit) for unit in row.units if not unit.is_retired)]
    found = {spec.endpoint.model for spec in specs if spec.endpoint is not None}
    return tuple(sorted(found))


def _dearest(book: PriceBook | None, meter: Meter, models: Sequence[str]) -> Price | None:
    """Return the highest price of a meter: what is held covers whichever replica answers."""
    prices = [price for model in models if (price := find_price(book, meter, model)) is not None]
    return max(
        prices, key=lambda price: Fraction(price.unit_price_neur, price.per or 1), default=None
    )


def _replicas(plane: Plane, books: Books, row: WorkloadRow) -> Iterator[ReplicaView]:
    for unit in row.units:
        attempt = books.schedule.attempts.get(unit.attempt) if unit.attempt else None
        if attempt is None or not attempt.is_live or attempt.stop_cause is not None:
            continue
        task: TaskRow = attempt.tasks[0]
        if not (task.is_ready and task.address) or attempt.id in books.schedule.drains:
            continue
        endpoint = row.spec_of(unit).endpoint
        zone = books.schedule.zone_of_node(task.node)
        site = books.site_of(zone) or Site(name="unknown", country="")
        energy = expected_energy(plane, books, task, endpoint, site)
        yield ReplicaView(
            attempt=attempt.id,
            address=task.address,
            key=plane.ports.launcher.replica_key(attempt.id),
            zone=zone,
            country=site.country,
            country_basis=site.country_basis,
            parallel_requests=endpoint.parallel_requests if endpoint else 1,
            energy_uj_per_token_input=energy.input_uj,
            energy_uj_per_token_output=energy.output_uj,
            energy_class=energy.quality,
            energy_uncertainty_ppm=energy.uncertainty_ppm,
            carbon_ng_per_j=site.carbon_location_ng_per_kwh // 3_600_000,
        )
