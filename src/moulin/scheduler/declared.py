"""The operator's declared objects as placement needs them: zones with their law, and names.

Decides which zones a demand may use at all (jurisdiction, zone state), never where in them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from moulin.domain.events import ObjectChange
from moulin.domain.factory import (
    CountryBasis,
    Organisation,
    Pool,
    Project,
    Quota,
    Site,
    Zone,
    ZoneState,
)
from moulin.domain.reasons import Reason, ReasonCode
from moulin.scheduler.demand import Demand

NOT_OPEN_YET = frozenset({ZoneState.ANNOUNCED, ZoneState.BUILDING, ZoneState.COMMISSIONING})
_UNDECLARED = Project(name="", organisation="")


@dataclass(slots=True)
class Declared:
    """Declared objects by name. Machine classes and price books are no concern of placement."""

    organisations: dict[str, Organisation] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    zones: dict[str, Zone] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    projects: dict[str, Project] = field(default_factory=dict)
    zone_names: tuple[str, ...] = ()
    site_names: tuple[str, ...] = ()
    domain_names: tuple[tuple[str, str], ...] = ()

    def apply(self, change: ObjectChange) -> None:
        """Set or remove one object; `index` must follow the last of them."""
        table = {
            "organisation": self.organisations,
            "site": self.sites,
            "zone": self.zones,
            "pool": self.pools,
            "project": self.projects,
        }.get(change.kind)
        if table is None:
            return
        objects: dict[str, object] = table  # type: ignore[assignment]
        if change.value is None:
            objects.pop(change.name, None)
        else:
            objects[change.name] = change.value

    def index(self) -> None:
        """Number zones, sites and domains by name.

        A domain is what a gang may span: one zone (one site, one law, one network) under one
        engine.
        """
        self.zone_names = tuple(sorted(self.zones))
        self.site_names = tuple(sorted(self.sites))
        self.domain_names = tuple(
            sorted({(pool.zone, pool.engine) for pool in self.pools.values()})
        )

    def site_of(self, zone: str) -> Site | None:
        """Return the site of a zone."""
        found = self.zones.get(zone)
        return self.sites.get(found.site) if found else None

    def quota(self, project: str) -> Quota:
        """Return a project's quota; an undeclared project has no limits."""
        found = self.projects.get(project)
        return found.quota if found else _UNDECLARED.quota

    def time_limit_s(self, project: str) -> int:
        """Return the time limit of the project's jobs that state none; 0 means no limit."""
        found = self.projects.get(project)
        return found.job_time_limit_s if found else _UNDECLARED.job_time_limit_s

    def forbids(self, zone: str, demand: Demand) -> Reason | None:
        """Return why the law of the demand keeps it out of a zone, None when it does not.

        A country that is only guessed satisfies no restriction (DESIGN rule 3).
        """
        organisation = self.organisations.get(demand.organisation)
        restrictions = [set(demand.countries)] if demand.countries else []
        if organisation is not None and organisation.countries:
            restrictions.append(set(organisation.countries))
        if not restrictions:
            return None
        site = self.site_of(zone)
        if site is None or site.country_basis is CountryBasis.GUESSED:
            return Reason(code=ReasonCode.COUNTRY_NOT_ASSERTED, parameters={"zone": zone})
        allowed = set.intersection(*restrictions)
        if site.country in allowed:
            return None
        return Reason(
            code=ReasonCode.JURISDICTION_FORBIDS,
            parameters={
                "allowed": ", ".join(sorted(allowed)) or "no country",
                "zone": zone,
                "country": site.country,
            },
        )

    def named_zones(self, demand: Demand) -> tuple[str, ...]:
        """Return the declared zones a demand names, or all of them when it names none."""
        if not demand.zones:
            return self.zone_names
        return tuple(zone for zone in demand.zones if zone in self.zones)

    def permitted_zones(self, demand: Demand) -> tuple[str, ...]:
        """Return the zones of any state that names and law permit, by name."""
        return tuple(
            zone for zone in self.named_zones(demand) if self.forbids(zone, demand) is None
        )

    def open_zones(self, demand: Demand) -> tuple[str, ...]:
        """Return the permitted zones that accept placements now, by name."""
        return tuple(
            zone
            for zone in self.permitted_zones(demand)
            if self.zones[zone].state is ZoneState.OPEN
        )

    def zone_reasons(self, demand: Demand) -> Iterator[Reason]:
        """Yield why no zone takes the demand now: names, then law, then zone states."""
        known = ", ".join(self.zone_names)
        for zone in demand.zones:
            if zone not in self.zones:
                parameters = {"zone": zone, "known": known}
                yield Reason(code=ReasonCode.UNKNOWN_ZONE, parameters=parameters)
        permitted = self.permitted_zones(demand)
        if not permitted:
            for zone in self.named_zones(demand):
                forbidden = self.forbids(zone, demand)
                if forbidden is not None:
                    yield forbidden
        if permitted and not self.open_zones(demand):
            for zone in permitted:
                parameters = {"zone": zone, "state": self.zones[zone].state.value}
                yield Reason(code=ReasonCode.ZONE_NOT_OPEN, parameters=parameters)
