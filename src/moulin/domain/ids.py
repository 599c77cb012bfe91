"""Readable, sortable identifiers; made from a time and entropy handed in, never from a clock.

Format: prefix, underscore, 26 Crockford base-32 characters (48-bit milliseconds, 80 bits of
entropy), so ids of one kind sort by creation. Reference: the ULID specification.

Ids that name something *within* a workload are derived, not drawn, so that a replayed log gives
the same ids and a repeated effect carries the same name: see `attempt_id` and `step_id`.
"""

from typing import Final, NewType

from moulin.domain.errors import check

WorkloadId = NewType("WorkloadId", str)
AttemptId = NewType("AttemptId", str)
StepId = NewType("StepId", str)
NodeId = NewType("NodeId", str)
ZoneId = NewType("ZoneId", str)
SiteId = NewType("SiteId", str)
PoolId = NewType("PoolId", str)
OrganisationId = NewType("OrganisationId", str)
ProjectId = NewType("ProjectId", str)
KeyId = NewType("KeyId", str)
ReceiptId = NewType("ReceiptId", str)

ENTROPY_BITS: Final = 80
PREFIX_BY_KIND: Final = {"job": "job", "endpoint": "end", "lease": "lse", "session": "ses"}
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def make_id(prefix: str, at_ns: int, entropy: int) -> str:
    """Return `prefix_` plus 26 characters; `entropy` must be below 2**80.

    >>> make_id("job", 1_700_000_000_000_000_000, 7)
    'job_01HF7YAT000000000000000007'
    """
    check(0 <= entropy < 1 << ENTROPY_BITS, "id entropy must fit 80 bits")
    value = (at_ns // 1_000_000 << ENTROPY_BITS) | entropy
    return f"{prefix}_{_base32(value)}"


def attempt_id(workload: str, unit: int, generation: int) -> AttemptId:
    """Name one try of one unit (a job's gang, an endpoint's replica) of a workload."""
    return AttemptId(f"{workload}.u{unit}.g{generation}")


def step_id(attempt: str, rank: int) -> StepId:
    """Name one task of an attempt; engines start a step at most once, however often they are asked."""
    return StepId(f"{attempt}.t{rank}")


def _base32(value: int) -> str:
    digits = []
    for _ in range(26):
        digits.append(_ALPHABET[value & 31])
        value >>= 5
    return "".join(reversed(digits))
