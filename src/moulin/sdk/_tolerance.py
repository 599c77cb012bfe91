"""Drops what a newer server says beyond what this client knows (v1 answers may gain fields).

Only names that no field has are dropped; a value of a wrong type stays and is refused later.
"""

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from moulin.domain.wire import public_name


def known_part(annotation: Any, data: Any) -> Any:
    """Return `data` without the keys that the dataclasses of `annotation` do not have."""
    while hasattr(annotation, "__supertype__"):
        annotation = annotation.__supertype__
    if dataclasses.is_dataclass(annotation) and isinstance(data, dict):
        hints = get_type_hints(annotation)
        kinds = {
            public_name(each.name): hints[each.name] for each in dataclasses.fields(annotation)
        }
        return {key: known_part(kinds[key], value) for key, value in data.items() if key in kinds}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is UnionType:
        return known_part(next(each for each in arguments if each is not NoneType), data)
    if origin is tuple and isinstance(data, list):
        return [known_part(arguments[0], each) for each in data]
    if origin in (Mapping, dict) and isinstance(data, dict):
        return {key: known_part(arguments[1], value) for key, value in data.items()}
    return data
