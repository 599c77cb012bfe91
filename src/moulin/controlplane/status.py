"""The factory at a glance, read from the books."""

from collections import Counter

from moulin.controlplane.books import Books
from moulin.controlplane.commands import FactoryStatus, ZoneStatus
from moulin.controlplane.plane import Plane
from moulin.domain.factory import ObjectKind, Site, Zone
from moulin.domain.views import BalanceView
from moulin.scheduler import node_views, site_draw_w


def read_status(plane: Plane, now_ns: int) -> FactoryStatus:
    """Return zones, nodes, balances and how many workloads are in each state."""
    books = plane.books
    counts = Counter(str(row.state) for row in books.schedule.workloads.values())
    return FactoryStatus(
        version=plane.settings.version,
        epoch=plane.epoch,
        sequence=books.sequence,
        now_ns=now_ns,
        zones=tuple(
            _zone_status(books, item.value)
            for (kind, _), item in sorted(books.declared.items())
            if kind is ObjectKind.ZONE and isinstance(item.value, Zone)
        ),
        nodes=tuple(node_views(books.schedule)),
        balances=balances(books),
        counts=dict(sorted(counts.items())),
    )


def balances(books: Books) -> tuple[BalanceView, ...]:
    """Return every project's money, by project."""
    return tuple(
        BalanceView(
            project=name,
            organisation=money.organisation,
            budget_neur=money.budget_neur,
            spent_neur=money.spent_neur,
            reserved_neur=money.reserved_neur,
            granted_neur=money.granted_neur + money.settled_neur,
        )
        for name, money in sorted(books.balances.projects.items())
    )


def _zone_status(books: Books, zone: Zone) -> ZoneStatus:
    site = books.site_of(zone.name)
    if site is None:
        site = Site(name=zone.site, country="")
    return ZoneStatus(
        name=zone.name,
        site=site.name,
        country=site.country,
        country_basis=site.country_basis,
        state=zone.state,
        nodes=sum(
            books.schedule.zone_of_node(node) == zone.name for node in books.schedule.nodes.names
        ),
        power_held_w=site_draw_w(books.schedule.declared, books.schedule.nodes.columns, site.name),
        power_envelope_w=site.power_envelope_w,
    )
