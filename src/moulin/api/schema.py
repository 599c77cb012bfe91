"""JSON Schema of domain values in their public wire form, made from the dataclasses themselves.

It decides nothing: types come from the annotations, bounds from `bounds.py`, words from docstrings,
so that the OpenAPI document cannot say other than what the code reads and writes.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from moulin.api.bounds import Text, Whole, bound_of
from moulin.domain.wire import is_instant, is_wide, public_name

REFERENCE: Final = "#/components/schemas/"
_WIDE: Final = {"type": "string", "pattern": "^-?(0|[1-9][0-9]*)$"}
_INSTANT: Final = {"type": ["string", "null"], "format": "date-time"}


class Schemas:
    """The components of one document: each type is described once, when first referred to."""

    def __init__(self) -> None:
        self.components: dict[str, dict[str, Any]] = {}

    def reference(self, kind: type) -> dict[str, Any]:
        """Return a reference to the schema of a dataclass or enum, describing it if new."""
        if kind.__name__ not in self.components:
            # Entered before it is filled: a type may refer to itself.
            self.components[kind.__name__] = {}
            self.components[kind.__name__] = (
                _enum(kind) if issubclass(kind, Enum) else self._object(kind)
            )
        return {"$ref": REFERENCE + kind.__name__}

    def _object(self, kind: type) -> dict[str, Any]:
        hints = get_type_hints(kind)
        properties: dict[str, Any] = {}
        required = []
        for item in dataclasses.fields(kind):
            key = public_name(item.name)
            properties[key] = self._field(kind, item, hints[item.name])
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                required.append(key)
        described: dict[str, Any] = {
            "type": "object",
            "description": inspect.getdoc(kind) or "",
            "properties": properties,
            "additionalProperties": False,
        }
        if required:
            described["required"] = required
        return described

    def _field(self, kind: type, item: "dataclasses.Field[Any]", annotation: Any) -> dict[str, Any]:
        if is_instant(item.name):
            return dict(_INSTANT)
        return self._of(annotation, bound_of(kind, item.name), is_wide=is_wide(item))

    def _of(self, annotation: Any, bound: Whole | Text | None, *, is_wide: bool) -> dict[str, Any]:
        while hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        if annotation in _SIMPLE:
            return dict(_SIMPLE[annotation])
        if annotation is int:
            return _integer(bound, is_wide=is_wide)
        if annotation is str:
            return _text(bound)
        if isinstance(annotation, type) and (
            dataclasses.is_dataclass(annotation) or issubclass(annotation, Enum)
        ):
            return self.reference(annotation)
        return self._collection(annotation, bound, is_wide=is_wide)

    def _collection(
        self, annotation: Any, bound: Whole | Text | None, *, is_wide: bool
    ) -> dict[str, Any]:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin in (Union, UnionType):
            inner = [each for each in arguments if each is not NoneType]
            return {"anyOf": [self._of(inner[0], bound, is_wide=is_wide), {"type": "null"}]}
        if origin is tuple:
            items = self._of(arguments[0], bound, is_wide=is_wide)
            return {"type": "array", "items": items, **_items_max(bound, "maxItems")}
        if origin in (Mapping, dict):
            values = self._of(arguments[1], bound, is_wide=is_wide)
            found = {
                "type": "object",
                "additionalProperties": values,
                **_items_max(bound, "maxProperties"),
            }
            if isinstance(bound, Text):
                found["propertyNames"] = {"pattern": f"^{bound.key_pattern}$"}
            return found
        raise TypeError(f"no schema for {annotation!r}")


_SIMPLE: Final[Mapping[Any, Mapping[str, Any]]] = {
    bool: {"type": "boolean"},
    float: {"type": "number"},
    bytes: {"type": "string", "contentEncoding": "base64"},
    object: {},
}


def _enum(kind: type[Enum]) -> dict[str, Any]:
    return {
        "type": "string",
        "enum": [member.value for member in kind],
        "description": inspect.getdoc(kind) or "",
    }


def _integer(bound: Whole | Text | None, *, is_wide: bool) -> dict[str, Any]:
    if is_wide:
        said = (
            f"an integer as decimal text, {bound.minimum} to {bound.maximum}"
            if isinstance(bound, Whole)
            else "an integer as decimal text"
        )
        return {**_WIDE, "description": said}
    if isinstance(bound, Whole):
        return {"type": "integer", "minimum": bound.minimum, "maximum": bound.maximum}
    return {"type": "integer"}


def _text(bound: Whole | Text | None) -> dict[str, Any]:
    if not isinstance(bound, Text):
        return {"type": "string"}
    found: dict[str, Any] = {"type": "string", "maxLength": bound.length_max}
    if bound.pattern:
        found["pattern"] = f"^(?:{bound.pattern})$"
    return found


def _items_max(bound: Whole | Text | None, word: str) -> dict[str, Any]:
    return {word: bound.items_max} if isinstance(bound, Text) else {}
