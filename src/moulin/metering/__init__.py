"""From allocations and requests to usages: quantities with their share of energy and carbon."""

from moulin.metering.replicas import (
    ANY_REPLICA,
    Closing,
    MeteringRules,
    OpenMetering,
    ReplicaInterval,
    RequestBegun,
    absorb,
    close_intervals,
    replica_intervals,
)
from moulin.metering.usage import (
    AttemptFacts,
    held_quantities,
    interval_usage_id,
    job_usages,
    request_usage_id,
)

__all__ = [
    "ANY_REPLICA",
    "AttemptFacts",
    "Closing",
    "MeteringRules",
    "OpenMetering",
    "ReplicaInterval",
    "RequestBegun",
    "absorb",
    "close_intervals",
    "held_quantities",
    "interval_usage_id",
    "job_usages",
    "replica_intervals",
    "request_usage_id",
]
