"""On what terms a model may be served: where it is in its life, and whether its licence is accepted.

A stage is derived from dates and never set by hand: preview, active, deprecated (served, with a
warning), retired (nothing new is deployed; what runs goes on).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from moulin.domain.reasons import Reason, ReasonCode
from moulin.domain.units import NS_PER_S


class Stage(StrEnum):
    """Where a model is in its life, in order."""

    PREVIEW = "preview"
    ACTIVE = "active"
    DEPRECATED = "deprecated"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """Days (ISO 8601, UTC) on which a model enters a stage; an empty day is not planned.

    A model without any day is active. `successor` is the model to take instead.
    """

    active_from: str = ""
    deprecated_from: str = ""
    retired_from: str = ""
    successor: str = ""

    def stage(self, at_ns: int) -> Stage:
        """Return the stage at a time.

        >>> Lifecycle(deprecated_from="1970-01-02").stage(0).value
        'active'
        """
        today = datetime.fromtimestamp(at_ns // NS_PER_S, UTC).date().isoformat()
        found = Stage.PREVIEW if self.active_from > today else Stage.ACTIVE
        if "" < self.deprecated_from <= today:
            found = Stage.DEPRECATED
        return Stage.RETIRED if "" < self.retired_from <= today else found


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceAcceptance:
    """Who accepted a licence's terms for which organisation, and when."""

    licence: str
    organisation: str
    by: str
    at_ns: int


# By (organisation, licence).
Acceptances = Mapping[tuple[str, str], LicenceAcceptance]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTerms:
    """What has to hold before a model is deployed.

    `licence` is the id of terms that somebody has to accept; empty when nobody has to.
    """

    model: str
    licence: str = ""
    licence_url: str = ""
    lifecycle: Lifecycle = field(default_factory=Lifecycle)


def not_served(
    terms: ModelTerms, organisation: str, accepted: Acceptances, at_ns: int
) -> Reason | None:
    """Return why an organisation may not deploy a model at a time, None when it may."""
    lifecycle = terms.lifecycle
    if lifecycle.stage(at_ns) is Stage.RETIRED:
        return Reason(
            code=ReasonCode.MODEL_RETIRED,
            parameters={
                "model": terms.model,
                "day": lifecycle.retired_from,
                "successor": lifecycle.successor or "none named",
            },
        )
    if terms.licence and (organisation, terms.licence) not in accepted:
        return Reason(
            code=ReasonCode.LICENCE_NOT_ACCEPTED,
            parameters={
                "model": terms.model,
                "licence": terms.licence,
                "organisation": organisation,
                "url": terms.licence_url,
            },
        )
    return None
