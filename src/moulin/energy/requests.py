"""Decide which share of a model server's energy each of its requests carries.

Never more than the server used, to the millijoule: what no request carries is unsold and goes to
the endpoint's owner. The weights are stated, not fitted to a model or machine.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from moulin.domain.errors import check
from moulin.domain.units import divide_round_half_even, share_out
from moulin.domain.usage import RequestUsage

# An output token takes a pass over the whole model on its own, input tokens share passes. Public
# prices of the two differ by 3 to 5; until a fit per model and machine exists, 4 is what we state.
INPUT_TOKEN_WEIGHT: Final = 1
OUTPUT_TOKEN_WEIGHT: Final = 4
SHARE_METHOD: Final = (
    f"shared by {INPUT_TOKEN_WEIGHT} x input + {OUTPUT_TOKEN_WEIGHT} x output tokens (stated)"
)
# Keeps fractions of a request's tokens apart when only part of it lies in the window.
_WEIGHT_SCALE: Final = 1 << 32


def share_requests(
    replica_mj: int,
    requests: Sequence[RequestUsage],
    *,
    standing_mj: int = 0,
    window_ns: tuple[int, int] | None = None,
) -> tuple[Mapping[str, int], int]:
    """Split a replica's energy over requests by tokens; return shares by request id, and the unsold.

    With `window_ns` = [start, end), a request counts with the part of its time inside. Of
    `standing_mj`, the part of `replica_mj` that runs without load, requests carry only the
    fraction of the window in which at least one of them was open.

    Order:  shares do not depend on the order of `requests`; ties go to the smaller request id.
    Cost:   O(requests log requests).
    """
    check(0 <= standing_mj <= replica_mj, "standing energy is part of the replica's")
    ordered = sorted(requests, key=lambda request: request.request)
    weights = [_weight(request, window_ns) for request in ordered]
    if not any(weights):
        return dict.fromkeys((request.request for request in ordered), 0), replica_mj
    unsold = 0
    if window_ns is not None and window_ns[1] > window_ns[0]:
        idle_ns = window_ns[1] - window_ns[0] - _covered_ns(ordered, window_ns)
        unsold = divide_round_half_even(standing_mj * idle_ns, window_ns[1] - window_ns[0])
    shares = share_out(replica_mj - unsold, weights)
    check(sum(shares) + unsold == replica_mj, "requests and unsold must add up to the replica's")
    return {r.request: share for r, share in zip(ordered, shares, strict=True)}, unsold


def _weight(request: RequestUsage, window_ns: tuple[int, int] | None) -> int:
    tokens = INPUT_TOKEN_WEIGHT * request.tokens_input + OUTPUT_TOKEN_WEIGHT * request.tokens_output
    # A server of audio or speech counts no tokens, so its requests only compare among themselves.
    tokens += request.audio_ms + request.characters_input
    if window_ns is None:
        return tokens
    start_ns, end_ns = _clip(request, window_ns)
    whole_ns = max(request.end_ns - request.start_ns, 1)
    return tokens * max(end_ns - start_ns, 0) * _WEIGHT_SCALE // whole_ns


def _clip(request: RequestUsage, window_ns: tuple[int, int]) -> tuple[int, int]:
    # A request shorter than the clock's step still took place.
    end_ns = max(request.end_ns, request.start_ns + 1)
    return max(request.start_ns, window_ns[0]), min(end_ns, window_ns[1])


def _covered_ns(requests: Sequence[RequestUsage], window_ns: tuple[int, int]) -> int:
    covered_ns = 0
    reached_ns = window_ns[0]
    for start_ns, end_ns in sorted(_clip(request, window_ns) for request in requests):
        if end_ns > reached_ns:
            covered_ns += end_ns - max(start_ns, reached_ns)
            reached_ns = end_ns
    return covered_ns
