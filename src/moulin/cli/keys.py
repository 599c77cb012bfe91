"""Commands about keys: who may call, how long, how fast and for how much."""

from typing import TYPE_CHECKING, Annotated

import typer

from moulin.cli.screen import answer, say, table, write
from moulin.cli.session import Data, IsJson, Project, connect
from moulin.domain.errors import InvalidRequest, NotFound
from moulin.domain.words import moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moulin.domain.control import KeyInfo, KeyIssued
    from moulin.domain.limits import Allowance, AllowanceView, RateLimit
    from moulin.sdk import Moulin

app = typer.Typer(
    help="Create, list, limit, rotate and revoke API keys.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
KeyName = Annotated[str, typer.Argument(metavar="ID", help="Its id, its beginning, or its name.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="Only this model; may be repeated.")
]
Countries = Annotated[
    list[str] | None, typer.Option("--country", help="Only served there; may be repeated.")
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", help="NAME=VALUE for sums of usage; repeatable.")
]
ExpiresIn = Annotated[
    str, typer.Option("--expires-in", help="Stops working after this long: 12h, 90d.")
]
Rpm = Annotated[str, typer.Option("--rpm", help="At most so many requests a minute.")]
Tpm = Annotated[str, typer.Option("--tpm", help="At most so many tokens a minute: 200k.")]
Concurrency = Annotated[str, typer.Option("--concurrency", help="At most so many at once.")]
Budget = Annotated[str, typer.Option("--budget", help="At most so many euros: 12.50.")]
Tokens = Annotated[str, typer.Option("--tokens", help="At most so many tokens: 50M.")]
Per = Annotated[str, typer.Option("--per", help="When budget and tokens renew: day, week, month.")]
UserBudget = Annotated[
    str, typer.Option("--user-budget", help="At most so many euros for each user: 2.00.")
]
UserTokens = Annotated[
    str, typer.Option("--user-tokens", help="At most so many tokens for each user: 1M.")
]
UserPer = Annotated[
    str, typer.Option("--user-per", help="When users' limits renew: day, week, month.")
]
UserAlerts = Annotated[
    list[str] | None,
    typer.Option("--user-alert", help="Tell the webhook when a user reaches this: 80%."),
]
Alerts = Annotated[
    list[str] | None, typer.Option("--alert", help="Tell the webhook at this fraction: 80%.")
]


@app.command("list")
def keys_list(data: Data = None, project: Project = "", is_json: IsJson = False) -> None:
    """List a project's keys, revoked ones too; secrets are not kept and cannot be shown."""
    with connect(data, project, is_operator=True) as client:
        page = client.keys.list()

    def show() -> None:
        table(
            ("id", "name", "role", "project", "models", "limits", "created", "state"),
            (
                (
                    *(key.id, key.name, key.role.value, key.project),
                    ", ".join(key.models) or "all",
                    _limits_text(key) or "none",
                    moment(key.created_at_ns),
                    _state(key),
                )
                for key in page.items
            ),
            empty="no keys",
        )

    answer(page, is_json=is_json, show=show)


@app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    *,
    role: Annotated[
        str, typer.Option("--role", help="admin, member, viewer, or inference (models only).")
    ] = "member",
    model: Models = None,
    country: Countries = None,
    label: Labels = None,
    expires_in: ExpiresIn = "",
    rpm: Rpm = "",
    tpm: Tpm = "",
    concurrency: Concurrency = "",
    budget: Budget = "",
    tokens: Tokens = "",
    per: Per = "",
    alert: Alerts = None,
    user_budget: UserBudget = "",
    user_tokens: UserTokens = "",
    user_per: UserPer = "",
    user_alert: UserAlerts = None,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Create a key and print it. It is shown this once and kept nowhere.

    \b
    Examples:
      moulin keys create laptop
      moulin keys create chatbot --role inference --model smollm2-135m-instruct --expires-in 90d
      moulin keys create course --role inference --rpm 60 --budget 20 --per month --alert 80%
      moulin keys create forum --role inference --user-budget 2.00 --user-per month
    """
    from moulin.domain.control import KeyWanted
    from moulin.domain.principal import Role
    from moulin.domain.section import check_country, nearest

    if role not in list(Role):
        raise InvalidRequest(
            f"create a key with role {role!r}", hint=nearest(role, [r.value for r in Role])
        )
    wanted = KeyWanted(
        name=name,
        role=Role(role),
        models=tuple(model or ()),
        countries=tuple(check_country("the flags", "--country", c) for c in country or ()),
        expires_at_ns=_in(expires_in) if expires_in else 0,
        labels=_labels(label),
        rate=_rate(rpm, tpm, concurrency),
        allowance=_allowance(budget, tokens, per, alert),
        per_user=_allowance(user_budget, user_tokens, user_per, user_alert),
    )
    with connect(data, project) as client:
        issued = client.keys.create(wanted)
    _answer_issued(issued, is_json=is_json)


@app.command("show")
def keys_show(
    id: KeyName, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """Show one key: what it may do, and how its limits stand."""
    with connect(data, project, is_operator=True) as client:
        key = _found(client, id, "show")
        views = _own(client, key)

    def show() -> None:
        facts = (
            ("key", f"{key.id} {key.name}"),
            ("role", f"{key.role.value} in {key.project} of {key.organisation}"),
            ("models", ", ".join(key.models) or "all"),
            ("countries", ", ".join(key.countries) or "all"),
            ("labels", ", ".join(f"{n}={v}" for n, v in sorted(key.labels.items())) or "none"),
            ("limits", _limits_text(key) or "none"),
            ("replaces", key.origin or "no key"),
            ("created", moment(key.created_at_ns)),
            ("state", _state(key)),
        )
        for fact, value in facts:
            write(f"{fact:<10} {value}")
        _show_allowances(views)

    answer({"key": key, "allowances": views}, is_json=is_json, show=show)


@app.command("spend")
def keys_spend(
    user: Annotated[
        str,
        typer.Option("--user", metavar="NAME", help="What one user used of each user's limits."),
    ] = "",
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Show what is used of every budget and token allowance that binds the project's keys."""
    with connect(data, project, is_operator=True) as client:
        page = client.keys.allowances(user=user)
    answer(page, is_json=is_json, show=lambda: _show_allowances(page.items))


@app.command("limit")
def keys_limit(
    id: KeyName,
    *,
    model: Models = None,
    country: Countries = None,
    label: Labels = None,
    rpm: Rpm = "",
    tpm: Tpm = "",
    concurrency: Concurrency = "",
    budget: Budget = "",
    tokens: Tokens = "",
    per: Per = "",
    alert: Alerts = None,
    user_budget: UserBudget = "",
    user_tokens: UserTokens = "",
    user_per: UserPer = "",
    user_alert: UserAlerts = None,
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Restrict a key to models or countries, or set its limits; what is not given stays.

    Rates (--rpm, --tpm, --concurrency) are replaced together, so are budgets, and so are the limits
    of each user (--user-budget, --user-tokens): whom a request's field `user` names, or the key's
    label `user`.
    """
    from moulin.domain.control import KeyChange
    from moulin.domain.section import check_country

    has_rate, has_budget = any((rpm, tpm, concurrency)), any((budget, tokens, per, alert))
    has_users = any((user_budget, user_tokens, user_per, user_alert))
    change = KeyChange(
        models=tuple(model) if model else None,
        countries=tuple(check_country("the flags", "--country", c) for c in country)
        if country
        else None,
        labels=_labels(label) if label else None,
        rate=_rate(rpm, tpm, concurrency) if has_rate else None,
        allowance=_allowance(budget, tokens, per, alert) if has_budget else None,
        per_user=_allowance(user_budget, user_tokens, user_per, user_alert) if has_users else None,
    )
    if change == KeyChange():
        raise InvalidRequest(f"limit {id!r}: nothing is given", hint="see `moulin keys limit -h`")
    with connect(data, project) as client:
        key = client.keys.change(_found(client, id, "limit").id, change)
    answer(key, is_json=is_json, show=lambda: write(f"{key.id} {key.name}: {_limits_text(key)}"))


@app.command("rotate")
def keys_rotate(
    id: KeyName,
    *,
    overlap: Annotated[
        str, typer.Option("--overlap", help="The old key works this long beside the new one.")
    ] = "1d",
    expires_in: ExpiresIn = "",
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Replace a key: print its successor, and let the old one end when the overlap is over.

    Both share their limits and what was used of them.
    """
    with connect(data, project) as client:
        old = _found(client, id, "rotate")
        until_ns = _in(overlap)
        issued = client.keys.rotate(
            old.id, old_until_ns=until_ns, expires_at_ns=_in(expires_in) if expires_in else 0
        )
    say(f"{old.id} {old.name} works until {moment(until_ns)}")
    _answer_issued(issued, is_json=is_json)


@app.command("expire")
def keys_expire(
    id: KeyName,
    after: Annotated[str, typer.Option("--in", help="From now: 12h, 90d; `never` for not at all.")],
    data: Data = None,
    project: Project = "",
    is_json: IsJson = False,
) -> None:
    """Let a key end by itself at a time, or take its end away."""
    from moulin.domain.control import KeyChange

    is_never = after == "never"
    change = KeyChange(never_expires=is_never, expires_at_ns=0 if is_never else _in(after))
    with connect(data, project) as client:
        key = client.keys.change(_found(client, id, "expire").id, change)
    answer(key, is_json=is_json, show=lambda: write(f"{key.id} {key.name} is {_state(key)}"))


@app.command("revoke")
def keys_revoke(
    id: KeyName, data: Data = None, project: Project = "", is_json: IsJson = False
) -> None:
    """Stop a key from working, at once and for good."""
    with connect(data, project, is_operator=True) as client:
        key = client.keys.revoke(_found(client, id, "revoke").id)
    answer(key, is_json=is_json, show=lambda: write(f"{key.id} {key.name} is revoked"))


@app.command("webhook")
def keys_webhook(data: Data = None, project: Project = "", is_json: IsJson = False) -> None:
    """Show where the project's alerts go and the secret that their signatures are made with."""
    with connect(data, project) as client:
        webhook = client.keys.webhook()

    def show() -> None:
        if not webhook.url:
            say("no webhook: an operator declares one in the operator file, `webhook: https://…`")
            return
        write(f"{webhook.url}")
        write(webhook.secret)

    answer(webhook, is_json=is_json, show=show)


def _found(client: "Moulin", wanted: str, doing: str) -> "KeyInfo":
    """Return the key in force that is meant; raises `NotFound` or `InvalidRequest`."""
    known = [key for key in client.keys.list().items if key.revoked_at_ns == 0]
    found = [k for k in known if k.id == wanted] or [
        k for k in known if k.name == wanted or k.id.startswith(wanted)
    ]
    if len(found) != 1:
        what = "no such key" if not found else f"{len(found)} keys"
        error = NotFound if not found else InvalidRequest
        raise error(f"{doing} {wanted!r}: that means {what}", hint="`moulin keys list` shows them")
    return found[0]


def _own(client: "Moulin", key: "KeyInfo") -> "tuple[AllowanceView, ...]":
    """Return the allowances that bind one key."""
    owners = {
        "key": key.origin or key.id,
        "project": key.project,
        "organisation": key.organisation,
    }
    views = client.keys.allowances(project=key.project).items
    return tuple(view for view in views if owners[view.scope.value] == view.name)


def _in(duration: str) -> int:
    import time

    from moulin.domain.units import NS_PER_S, parse_duration_s

    return time.time_ns() + parse_duration_s(duration) * NS_PER_S


def _labels(pairs: list[str] | None) -> dict[str, str]:
    labels = {}
    for pair in pairs or ():
        name, mark, value = pair.partition("=")
        if not (name and mark and value):
            raise InvalidRequest(f"read label {pair!r}", hint="write for example team=biology")
        labels[name] = value
    return labels


def _rate(rpm: str, tpm: str, concurrency: str) -> "RateLimit":
    from moulin.domain.limits import RateLimit
    from moulin.domain.limitsfile import parse_count

    return RateLimit(
        requests_per_minute=parse_count(rpm) if rpm else 0,
        tokens_per_minute=parse_count(tpm) if tpm else 0,
        concurrency=parse_count(concurrency) if concurrency else 0,
    )


def _allowance(budget: str, tokens: str, per: str, alerts: list[str] | None) -> "Allowance":
    from moulin.domain.limits import Allowance, Period
    from moulin.domain.limitsfile import parse_count, parse_fraction_ppm
    from moulin.domain.section import nearest
    from moulin.domain.units import parse_euros

    if (per or alerts) and not (budget or tokens):
        raise InvalidRequest(
            "set a period or an alert without a limit", hint="add --budget or --tokens"
        )
    if per and per not in list(Period):
        raise InvalidRequest(f"renew per {per!r}", hint=nearest(per, [p.value for p in Period]))
    return Allowance(
        amount_neur=parse_euros(budget) if budget else -1,
        tokens=parse_count(tokens) if tokens else -1,
        period=Period(per or Period.EVER),
        alerts_ppm=tuple(sorted({parse_fraction_ppm(alert) for alert in alerts or ()})),
    )


def _answer_issued(issued: "KeyIssued", *, is_json: bool) -> None:
    def show() -> None:
        say(f"key {issued.key.id} for project {issued.key.project}; it is shown this once:")
        write(issued.secret)
        if not issued.is_in_force:
            say("no gateway has taken it over yet; once one does, it may call models")

    answer(issued, is_json=is_json, show=show)


def _show_allowances(views: "tuple[AllowanceView, ...]") -> None:
    from moulin.domain.limits import allowance_name, amount_text

    table(
        ("of", "name", "used>", "at gateways>", "limit>", "alerts", "renewed"),
        (
            (
                view.scope.value,
                view.name,
                *(
                    amount_text(allowance_name(view.scope, view.name, view.unit), amount)
                    for amount in (view.used, view.held, view.limit)
                ),
                ", ".join(f"{ppm // 10_000}%" for ppm in view.alerts_ppm) or "none",
                moment(view.resets_at_ns) if view.resets_at_ns else "never",
            )
            for view in views
        ),
        empty="no budget and no token allowance",
    )


def _limits_text(key: "KeyInfo") -> str:
    rate = key.rate
    parts = (
        (rate.requests_per_minute > 0, f"{rate.requests_per_minute} requests/min"),
        (rate.tokens_per_minute > 0, f"{rate.tokens_per_minute} tokens/min"),
        (rate.concurrency > 0, f"{rate.concurrency} at once"),
    )
    rates = [text for is_set, text in parts if is_set]
    return ", ".join(
        [
            *rates,
            *_allowance_texts(key.allowance),
            *_allowance_texts(key.per_user, " for each user"),
        ]
    )


def _allowance_texts(allowance: "Allowance", whose: str = "") -> "Iterator[str]":
    from moulin.domain.units import format_euros

    period = "" if allowance.period.value == "ever" else f" per {allowance.period.value}"
    if allowance.amount_neur >= 0:
        yield f"{format_euros(allowance.amount_neur)} EUR{period}{whose}"
    if allowance.tokens >= 0:
        yield f"{allowance.tokens} tokens{period}{whose}"


def _state(key: "KeyInfo") -> str:
    import time

    if key.revoked_at_ns:
        return "revoked"
    if key.expires_at_ns:
        is_over = key.expires_at_ns <= time.time_ns()
        return f"{'expired' if is_over else 'valid until'} {moment(key.expires_at_ns)}"
    return "valid"
