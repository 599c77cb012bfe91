"""How values cross a wire or reach a disk: frozen dataclasses to JSON-able data and back.

It decides the one JSON form of every domain value: enums by value, bytes as base64, tuples as
arrays, and integers that can pass 2**53 as decimal text (DESIGN rule 1). It never parses or prints
JSON itself, and it never guesses: unknown keys, missing values and wrong types are refused.

There are two written forms of one value. `encode` is for what Moulin keeps (log, rows, journals,
snapshots): instants stay `_ns` fields. `encode_public` is for what callers see: instants are RFC
3339 under the field's name without `_ns` (`submitted_at`), null when unset. Reading is more
tolerant than writing: it takes either form, and a wide integer may also come as a JSON number.
"""

import base64
import binascii
import dataclasses
import difflib
import functools
import operator
import re
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from moulin.domain.errors import InvalidSpec
from moulin.domain.units import format_time, parse_time

T = TypeVar("T")
_Encode = Callable[[Any], Any]
_Decode = Callable[[Any], Any]

WIDE_SUFFIXES: Final = ("_neur", "_mj", "_ng", "_ns", "_bytes")
# The metadata of a field whose integers are wide though its name has no unit: that is in another.
WIDE: Final[Mapping[str, bool]] = {"is_wide": True}
SAFE_INTEGER_MAX: Final = 2**53 - 1
# Points in time, as opposed to spans such as `cpu_ns`.
_INSTANT: Final = re.compile(
    r"(?:[a-z_]+_)?at_ns|now_ns|start_ns|end_ns|not_before_ns|effective_from_ns"
)
INSTANT_NS_MAX: Final = 253_402_300_800 * 10**9 - 1  # the end of year 9999, RFC 3339's last
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,39})")


def encode(value: object) -> Any:
    """Return `value` as dicts, lists, strings, numbers, booleans and None.

    Every field is written, defaults too, in the order of definition.
    Raises `TypeError` for a field type the wire has no form for (a bug, found at first use).

    Cost:   one dict per dataclass; the plan of each type is made once per process.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return _encode_bytes(value)
    if isinstance(value, Mapping):
        return {encode(key): encode(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [encode(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return _encode_int(value)
    return value


def encode_public(value: object) -> Any:
    """Return `value` as `encode` does, with instants as RFC 3339 in UTC.

    Raises `TypeError` as `encode` does. An instant outside 1970 to 9999 stays decimal text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _public_fields(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [encode_public(item) for item in value]
    return encode(value)


def is_instant(name: str) -> bool:
    """Say whether an integer field of this name is a point in time."""
    return _INSTANT.fullmatch(name) is not None


def public_name(name: str) -> str:
    """Return the key of a field in the public form.

    >>> public_name("submitted_at_ns"), public_name("cpu_ns")
    ('submitted_at', 'cpu_ns')
    """
    return name.removesuffix("_ns") if is_instant(name) else name


def decode(kind: type[T], data: object) -> T:
    """Return `data` as a value of the dataclass or enum `kind`; fields with defaults may be absent.

    Raises `InvalidSpec`, naming the path, for an unknown key (with the nearest valid one), a
    missing key, a wrong type, an unknown enum word, or a number that is not an exact integer.

    >>> from moulin.domain.snapshot import Want
    >>> decode(Want, {"project": "lab", "amount_neur": "9007199254740993"}).amount_neur
    9007199254740993
    """
    try:
        value: T = _decoder(kind, is_wide=False)(data)
    except _Mismatch as mismatch:
        path = ".".join(reversed(mismatch.path)) or kind.__name__
        raise InvalidSpec(
            f"read {kind.__name__}: {path}: {mismatch.problem}",
            hint=mismatch.hint,
            details={"path": path},
        ) from None
    return value


class _Mismatch(Exception):
    """What is wrong; `path` grows outwards while the exception passes each field."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.path: list[str] = []


def _fields(value: Any) -> Any:
    kind: Any = type(value)
    return _encode_plan(kind)(value)


def _public_fields(value: Any) -> Any:
    kind: Any = type(value)
    return _public_plan(kind)(value)


@functools.cache
def _encode_plan(kind: type) -> _Encode:
    hints = get_type_hints(kind)
    return _plan_encoder(
        [
            (item.name, item.name, _encoder(hints[item.name], _fields, is_wide=is_wide(item)))
            for item in dataclasses.fields(kind)
        ]
    )


@functools.cache
def _public_plan(kind: type) -> _Encode:
    hints = get_type_hints(kind)
    return _plan_encoder(
        [
            (
                item.name,
                public_name(item.name),
                _encode_instant
                if is_instant(item.name)
                else _encoder(hints[item.name], _public_fields, is_wide=is_wide(item)),
            )
            for item in dataclasses.fields(kind)
        ]
    )


def _plan_encoder(fields: list[tuple[str, str, _Encode | None]]) -> _Encode:
    if len(fields) < 2:
        return lambda value: {
            key: (step or _identity)(getattr(value, name)) for name, key, step in fields
        }
    # All fields in one call, then only those that are not their own wire form one by one.
    read = operator.attrgetter(*(name for name, _, _ in fields))
    keys = tuple(key for _, key, _ in fields)
    steps = [(key, step) for _, key, step in fields if step is not None]

    def encode_fields(value: Any) -> dict[str, Any]:
        written = dict(zip(keys, read(value), strict=True))
        for key, step in steps:
            written[key] = step(written[key])
        return written

    return encode_fields


def is_wide(item: "dataclasses.Field[Any]") -> bool:
    """Say whether a field's integers are text on the wire: by its unit, or as it is declared."""
    return item.name.endswith(WIDE_SUFFIXES) or WIDE.items() <= item.metadata.items()


def _encoder(annotation: Any, nested: _Encode, *, is_wide: bool) -> _Encode | None:
    """Return the step for one annotation; None where the value is its own wire form."""
    annotation = _unwrap(annotation)
    if annotation in (str, bool, float, None, type(None), object, Any):
        return None if annotation not in (object, Any) else encode
    if annotation is int:
        return str if is_wide else _encode_int
    if annotation is bytes:
        return _encode_bytes
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return lambda value: value.value
    if dataclasses.is_dataclass(annotation):
        return nested
    return _container_encoder(annotation, nested, is_wide=is_wide)


def _container_encoder(annotation: Any, nested: _Encode, *, is_wide: bool) -> _Encode:
    optional = _optional_inner(annotation)
    if optional is not None:
        inner = _encoder(optional, nested, is_wide=is_wide) or _identity
        return lambda value: None if value is None else inner(value)
    item = _tuple_item(annotation)
    if item is not None:
        each_step = _encoder(item, nested, is_wide=is_wide)
        return list if each_step is None else _list_encoder(each_step)
    entry = _mapping_entry(annotation)
    if entry is not None:
        key = _encoder(entry[0], nested, is_wide=False) or _identity
        step = _encoder(entry[1], nested, is_wide=is_wide) or _identity
        return lambda value: {key(name): step(each) for name, each in value.items()}
    raise TypeError(f"the wire has no form for {annotation!r}")


def _list_encoder(step: _Encode) -> _Encode:
    return lambda value: [step(each) for each in value]


def _decoder(annotation: Any, *, is_wide: bool) -> _Decode:
    return _cached_decoder(annotation, is_wide)


@functools.cache
def _cached_decoder(annotation: Any, is_wide: bool) -> _Decode:  # noqa: FBT001 - a cache key
    annotation = _unwrap(annotation)
    if annotation in (object, Any):
        return _identity
    if annotation is int:
        return _decode_wide if is_wide else _decode_int
    if annotation in _DECODERS:
        return _DECODERS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _enum_decoder(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return lambda data: _decode_plan(annotation)(data)  # noqa: PLW0108 - types may recurse
    return _container_decoder(annotation, is_wide=is_wide)


def _container_decoder(annotation: Any, *, is_wide: bool) -> _Decode:
    optional = _optional_inner(annotation)
    if optional is not None:
        inner = _decoder(optional, is_wide=is_wide)
        return lambda data: None if data is None else inner(data)
    item = _tuple_item(annotation)
    if item is not None:
        return _tuple_decoder(_decoder(item, is_wide=is_wide))
    entry = _mapping_entry(annotation)
    if entry is not None:
        return _mapping_decoder(
            _decoder(entry[0], is_wide=False), _decoder(entry[1], is_wide=is_wide)
        )
    raise TypeError(f"the wire has no form for {annotation!r}")


@functools.cache
def _decode_plan(kind: type) -> _Decode:
    hints = get_type_hints(kind)
    steps: dict[str, _Decode] = {}
    names: dict[str, str] = {}
    required: list[str] = []
    for item in dataclasses.fields(kind):
        step = _decode_instant if is_instant(item.name) else None
        for key in (item.name, public_name(item.name)):
            steps[key] = step or _decoder(hints[item.name], is_wide=is_wide(item))
            names[key] = item.name
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            required.append(item.name)

    def decode_fields(data: Any) -> Any:
        if not isinstance(data, dict):
            raise _Mismatch(f"expected an object, found {_name(data)}")
        values: dict[str, Any] = {}
        name = ""
        try:
            for name, item in data.items():
                values[names[name]] = steps[name](item)
        except KeyError:
            raise _unknown_key(str(name), tuple(steps)) from None
        except _Mismatch as mismatch:
            mismatch.path.append(name)
            raise
        if len(values) != len(data):
            raise _Mismatch("an instant is given twice, with and without _ns")
        return _made(kind, values, required)

    return decode_fields


def _made(kind: type, values: dict[str, Any], required: list[str]) -> Any:
    try:
        return kind(**values)
    except TypeError:
        missing = [name for name in required if name not in values]
        raise _Mismatch(f"missing {', '.join(missing)}") from None


def _tuple_decoder(step: _Decode) -> _Decode:
    def decode_items(data: Any) -> tuple[Any, ...]:
        if not isinstance(data, (list, tuple)):
            raise _Mismatch(f"expected an array, found {_name(data)}")
        index = 0
        values = []
        try:
            for index, item in enumerate(data):  # noqa: B007 - the index is the path of a mismatch
                values.append(step(item))
        except _Mismatch as mismatch:
            mismatch.path.append(str(index))
            raise
        return tuple(values)

    return decode_items


def _mapping_decoder(key_step: _Decode, step: _Decode) -> _Decode:
    def decode_entries(data: Any) -> dict[Any, Any]:
        if not isinstance(data, dict):
            raise _Mismatch(f"expected an object, found {_name(data)}")
        values = {}
        for key, item in data.items():
            try:
                values[key_step(key)] = step(item)
            except _Mismatch as mismatch:
                mismatch.path.append(str(key))
                raise
        return values

    return decode_entries


def _enum_decoder(kind: type[Enum]) -> _Decode:
    words = {member.value: member for member in kind}

    def decode_word(data: Any) -> Enum:
        try:
            return words[data]
        except (KeyError, TypeError):
            near = difflib.get_close_matches(str(data), [str(word) for word in words], n=1)
            hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(map(str, words))}"
            raise _Mismatch(f"{data!r} is not a {kind.__name__}", hint) from None

    return decode_word


def _decode_text(data: Any) -> str:
    if isinstance(data, str):
        return data
    raise _Mismatch(f"expected text, found {_name(data)}")


def _decode_bool(data: Any) -> bool:
    if isinstance(data, bool):
        return data
    raise _Mismatch(f"expected true or false, found {_name(data)}")


def _decode_float(data: Any) -> float:
    if isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    raise _Mismatch(f"expected a number, found {_name(data)}")


def _decode_none(data: Any) -> None:
    if data is not None:
        raise _Mismatch(f"expected null, found {_name(data)}")


def _decode_wide(data: Any) -> int:
    if isinstance(data, int) and not isinstance(data, bool):
        return data
    if isinstance(data, str) and _DECIMAL.fullmatch(data) and data != "-0":
        return int(data)
    raise _Mismatch(f"expected an integer or a decimal string, found {_name(data)}")


def _decode_instant(data: Any) -> int:
    if data is None:
        return 0
    if not isinstance(data, str) or _DECIMAL.fullmatch(data):
        return _decode_wide(data)
    try:
        return parse_time(data)
    except InvalidSpec:
        raise _Mismatch(
            f"{data[:40]!r} is not a time", "write RFC 3339, for example 2026-11-22T09:30:00Z"
        ) from None


def _decode_int(data: Any) -> int:
    if type(data) is int:
        return data
    if isinstance(data, str) and abs(_decode_wide(data)) > SAFE_INTEGER_MAX:
        return int(data)
    raise _Mismatch(f"expected an integer, found {_name(data)}")


def _decode_bytes(data: Any) -> bytes:
    try:
        return base64.b64decode(_decode_text(data), validate=True)
    except (binascii.Error, ValueError):
        raise _Mismatch("expected base64 text") from None


def _encode_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _encode_instant(value: int) -> str | None:
    if 0 < value <= INSTANT_NS_MAX:
        return format_time(value)
    # Nothing that exists has such a time; it must be seen all the same, not fail to be written.
    return str(value) if value else None


def _encode_int(value: int) -> int | str:
    return value if -SAFE_INTEGER_MAX <= value <= SAFE_INTEGER_MAX else str(value)


def _identity(value: Any) -> Any:
    return value


_DECODERS: Final[Mapping[Any, _Decode]] = {
    str: _decode_text,
    bool: _decode_bool,
    float: _decode_float,
    bytes: _decode_bytes,
    type(None): _decode_none,
}


def _unwrap(annotation: Any) -> Any:
    while hasattr(annotation, "__supertype__"):
        annotation = annotation.__supertype__
    return annotation


def _optional_inner(annotation: Any) -> Any:
    """Return X of `X | None`; None for anything else (a union of two values has no wire form)."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    inner = [each for each in get_args(annotation) if each is not type(None)]
    return inner[0] if len(inner) == 1 else None


def _tuple_item(annotation: Any) -> Any:
    arguments = get_args(annotation)
    if get_origin(annotation) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return arguments[0]
    return None


def _mapping_entry(annotation: Any) -> Any:
    return get_args(annotation) if get_origin(annotation) in (Mapping, dict) else None


def _unknown_key(name: str, known: tuple[str, ...]) -> _Mismatch:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return _Mismatch(f"unknown key {name!r}", hint)


def _name(data: Any) -> str:
    if data is None:
        return "null"
    return {dict: "an object", list: "an array", str: "text", bool: "true or false"}.get(
        type(data), "a number" if isinstance(data, (int, float)) else type(data).__name__
    )
