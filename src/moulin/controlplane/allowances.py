"""Hands parts of budgets and allowances to gateways, takes them back, and says when to alert.

Far from exhaustion a gateway gets all it wants; near it, its even part of what is left, down to what
one request needs, so that no gateway sits on what another could use. Nothing beyond what is
available is ever handed out.
"""

from collections.abc import Callable, Iterator

from moulin.controlplane.books import Books
from moulin.controlplane.commands import Answer, ReadAllowances, SettleAlert
from moulin.controlplane.draft import Draft
from moulin.controlplane.plane import Plane
from moulin.domain.control import AllowancePage
from moulin.domain.factory import webhook_of
from moulin.domain.gateway_events import (
    AlertSettled,
    AllowanceAlerted,
    AllowanceGranted,
    AllowanceReturned,
)
from moulin.domain.limits import (
    USERS_MAX,
    AllowanceNotice,
    AllowanceView,
    LimitScope,
    Period,
    amount_text,
    every_users,
    is_users,
    parts_of,
    user_allowance,
    user_parts,
)
from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.snapshot import Grant, SyncRequest, Want
from moulin.domain.units import format_time
from moulin.ledger.allowances import view_of
from moulin.ledger.crowds import Crowd
from moulin.ledger.spending import Spending

Owner = tuple[str, str]
"""Project and organisation of an allowance; an organisation's has no project."""


def portion(want: Want, available: int, gateways: int) -> int:
    """Return how much of what is available one of so many gateways gets now.

    A part is of whole requests, so that no gateway keeps a rest that serves nobody.

    >>> portion(Want(project="lab", amount_neur=100, least_neur=10), 65, 2)
    30
    """
    least = want.least_neur
    if not least:
        return min(want.amount_neur, max(available, 0))
    fair = max(available // max(gateways, 1), least)
    amount = max(0, min(want.amount_neur, fair, available))
    return amount - amount % least if amount > least else amount


def is_refused(want: Want, amount: int) -> bool:
    """Say whether so much does not even serve who waits longest."""
    return amount < (want.least_neur or want.amount_neur)


def gateways_of(books: Books) -> int:
    """Return how many gateways share what is left."""
    return len({gateway for gateway, _ in books.gateways.epochs})


def grant_allowance(draft: Draft, request: SyncRequest, want: Want) -> Grant:
    """Hand out of an allowance what is wanted, or near exhaustion a part, with the numbers."""
    books = draft.books
    spending = spending_of(draft, want.project)
    if spending is None:
        # The limit was lifted a moment ago; the next snapshot says so.
        return Grant(project=want.project, amount_neur=want.amount_neur)
    spending.turn(draft.now_ns)
    available = spending.available(draft.now_ns)
    amount = portion(want, available, gateways_of(books))
    crowd = books.allowances.crowd_of(want.project)
    if crowd is not None and not crowd.has_room(want.project, draft.now_ns):
        return Grant(project=want.project, amount_neur=0, refusal=_too_many(want, crowd))
    if (request.gateway, request.epoch) not in books.gateways.epochs:
        amount = 0  # it said that it was done: nobody would ever give this back
    if amount > 0:
        draft.append(
            AllowanceGranted(
                gateway=request.gateway,
                gateway_epoch=request.epoch,
                allowance=want.project,
                amount=amount,
            ),
            project=owner_of(books, want.project)[0],
        )
    refusal = _exhausted(draft, want, spending, available) if is_refused(want, amount) else None
    return Grant(project=want.project, amount_neur=amount, refusal=refusal)


def spending_of(draft: Draft, name: str) -> Spending | None:
    """Return how an allowance stands, also a user's who begins now; None when it is not limited."""
    allowances = draft.books.allowances
    if not is_users(name):
        return allowances.spending.get(name)
    crowd = allowances.crowd_of(name)
    return crowd.look(name, draft.now_ns) if crowd is not None else None


def take_closed(draft: Draft, request: SyncRequest) -> None:
    """Take back all that is out of users' allowances of which the gateway holds nothing more."""
    books = draft.books
    book = books.gateways.epochs.get((request.gateway, request.epoch))
    for name in sorted(set(request.closed)):
        held = books.allowances.escrow.get((request.gateway, request.epoch, name), 0)
        if is_users(name) and (held or (book is not None and name in book.kept)):
            take_back(draft, request, name, held, is_closed=True)


def take_back(
    draft: Draft, request: SyncRequest, name: str, amount: int, *, is_closed: bool = False
) -> None:
    """Take unused parts of an allowance back."""
    draft.append(
        AllowanceReturned(
            gateway=request.gateway,
            gateway_epoch=request.epoch,
            allowance=name,
            amount=amount,
            is_closed=is_closed,
        ),
        project=owner_of(draft.books, name)[0],
    )


def owner_of(books: Books, name: str) -> Owner:
    """Return the project and the organisation that an allowance belongs to."""
    scope, owner, _ = parts_of(name)
    if scope is LimitScope.ORGANISATION:
        return "", owner
    if is_users(name):
        owner, _ = user_parts(owner)
    if scope in (LimitScope.PROJECT, LimitScope.PROJECT_USER):
        project = books.project(owner)
        return owner, project.organisation if project else ""
    key = books.keyring.by_id.get(owner)
    return (key.project, key.organisation) if key else ("", "")


def read_allowances(plane: Plane, draft: Draft, command: ReadAllowances) -> Callable[[], Answer]:
    """Answer how the allowances stand that bind a project and its keys, or one user of them."""

    def finish() -> Answer:
        views = _user_views if command.users else _views
        return AllowancePage(items=tuple(views(draft.books, command, draft.now_ns)))

    return finish


def _user_views(books: Books, command: ReadAllowances, now_ns: int) -> Iterator[AllowanceView]:
    """Yield what the project and its keys let a user use, under each name the user may have."""
    for (scope, owner), crowd in sorted(books.allowances.crowds.items()):
        for unit in crowd.units():
            everybody = every_users(scope, owner, unit)
            if command.project not in ("", owner_of(books, everybody)[0]):
                continue
            names = [user_allowance(everybody, user) for user in command.users]
            # Of a user who used nothing lately the recorded name comes first.
            known = [name for name in names if name in crowd.spending] or names[:1]
            for name in known:
                spending = crowd.look(name, now_ns)
                if spending is not None:
                    yield view_of(name, spending, now_ns)


def _views(books: Books, command: ReadAllowances, now_ns: int) -> Iterator[AllowanceView]:
    project = command.project
    declared = books.project(project)
    organisation = declared.organisation if declared else ""
    for name, spending in sorted(books.allowances.spending.items()):
        owner, owner_organisation = owner_of(books, name)
        is_own = owner == project or (not owner and owner_organisation == organisation)
        if not project or is_own:
            yield view_of(name, spending, now_ns)


def raise_alerts(draft: Draft) -> None:
    """Draft one alert for each allowance that reached a fraction it was not yet told for."""
    allowances = draft.books.allowances
    for name in sorted(allowances.touched):
        spending = allowances.find(name)
        threshold_ppm = spending.alert_due() if spending else 0
        if spending is None or not threshold_ppm:
            continue
        draft.append(
            AllowanceAlerted(
                allowance=name,
                threshold_ppm=threshold_ppm,
                used=spending.used,
                limit=spending.limit,
                start_ns=spending.start_ns,
                has_webhook=bool(_webhook(draft.books, name)),
            ),
            project=owner_of(draft.books, name)[0],
        )
    allowances.touched.clear()


def tell_alerts(plane: Plane, draft: Draft) -> None:
    """Hand the alerts that are durable now to whoever tells webhooks; it does not wait."""
    for event in draft.events:
        if isinstance(event.payload, AllowanceAlerted) and event.payload.has_webhook:
            notice = notice_of(plane.books, event.sequence, event.payload, event.at_ns)
            if notice is not None:
                plane.ports.notify(notice)


def tell_again(plane: Plane) -> None:
    """Hand over again the alerts that no webhook has answered for."""
    for sequence, alerted in sorted(plane.books.allowances.untold.items()):
        notice = notice_of(plane.books, sequence, alerted, plane.now_ns())
        if notice is not None:
            plane.ports.notify(notice)


def notice_of(
    books: Books, sequence: int, alerted: AllowanceAlerted, at_ns: int
) -> AllowanceNotice | None:
    """Return what to tell, None when the allowance is gone."""
    spending = books.allowances.find(alerted.allowance)
    if spending is None:
        return None
    project, organisation = owner_of(books, alerted.allowance)
    return AllowanceNotice(
        id=sequence,
        at_ns=at_ns,
        organisation=organisation,
        project=project,
        threshold_ppm=alerted.threshold_ppm,
        allowance=view_of(alerted.allowance, spending, at_ns),
        url=_webhook(books, alerted.allowance),
    )


def settle_alert(plane: Plane, draft: Draft, command: SettleAlert) -> Callable[[], Answer]:
    """Record that a webhook took an alert or an end, or that it was given up."""
    books = draft.books
    if command.alert in books.allowances.untold or command.alert in books.notices.untold:
        draft.append(
            AlertSettled(
                alert=command.alert,
                is_delivered=command.is_delivered,
                attempts=command.attempts,
            )
        )
    return lambda: AllowancePage(items=())


def _webhook(books: Books, name: str) -> str:
    """Return the address that the operator declared for the owner of an allowance."""
    project, organisation = owner_of(books, name)
    return webhook_of(books.project(project), books.organisation(organisation))


def _too_many(want: Want, crowd: Crowd) -> Reason:
    scope, owner, _ = parts_of(want.project)
    is_ever = crowd.allowance.period is Period.EVER
    ends = "never" if is_ever else f"at {format_time(crowd.full_until_ns)}"
    return Reason(
        code=ReasonCode.TOO_MANY_USERS,
        parameters={
            "scope": scope.value.removesuffix("_user"),
            "owner": user_parts(owner)[0],
            "limit": str(USERS_MAX),
            "when": ends,
        },
    )


def _exhausted(draft: Draft, want: Want, spending: Spending, available: int) -> Reason:
    scope, owner, _ = parts_of(want.project)
    view = view_of(want.project, spending, draft.now_ns)
    until = f"until {format_time(view.resets_at_ns)}" if view.resets_at_ns else "for ever"
    return Reason(
        code=ReasonCode.ALLOWANCE_EXCEEDED,
        parameters={
            "scope": scope.value,
            "owner": owner,
            "left": amount_text(want.project, max(available, 0)),
            "limit": amount_text(want.project, view.limit),
            "period": until,
            "wanted": amount_text(want.project, want.least_neur or want.amount_neur),
        },
    )
