"""One canonical text for any value of the scheduler, and its SHA-256.

The text depends on contents alone: not on hash seeds, insertion order of mappings, or the process.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from moulin.domain.plan import Place, Plan


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value's canonical text, as hex."""
    text = json.dumps(_canonical(value), separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plan_digest(plan: Plan) -> str:
    """Return the digest a cycle logs as evidence of what it decided."""
    parts: list[object] = [
        [plan.now_ns, plan.input_sequence],
        json.dumps([_place(place) for place in plan.places]),
        plan.stops,
        plan.requeues,
        plan.finishes,
    ]
    if plan.scales or plan.drains:  # left out where empty, as before there were any
        parts += [plan.scales, plan.drains]
    if plan.unit_finishes:
        parts.append(["elements", plan.unit_finishes])
    if plan.judgements:
        parts.append(["verdicts", plan.judgements])
    if plan.successions:
        parts.append(["successions", plan.successions])
    if plan.preemptions:
        parts.append(["preemptions", plan.preemptions])
    return digest_of(parts)


def _place(place: Place) -> list[object]:
    # Written out: plans are mostly placements, and reflection would cost more than deciding them.
    tasks = [(task.rank, task.node, task.devices) for task in place.tasks]
    parts = [place.attempt, place.workload, place.unit, place.generation, tasks]
    if place.check_s:
        parts += ["check", place.check_s]
    return [*parts, place.choice] if place.choice else parts


def _canonical(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        pairs = [[_canonical(key), _canonical(item)] for key, item in value.items()]
        return sorted(pairs, key=lambda pair: json.dumps(pair[0]))
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return [type(value).__name__, *([name, _canonical(getattr(value, name))] for name in names)]
    raise TypeError(f"{type(value).__name__} has no canonical form")
