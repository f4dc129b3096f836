"""The spec as a release keeps it: what was accepted when it was written stays readable. Pure.

Bounds and checks get stricter over time. A service with an older release must still start, roll back and stop, so its
values are used as written. New specs use `spec.parse_spec`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import ErrorDetails

from tasks.core.spec import DeploySpec

_CHECKS = {
    *("less_than", "less_than_equal", "greater_than", "greater_than_equal", "finite_number"),
    *("too_long", "string_too_long", "string_pattern_mismatch", "value_error"),
}
"""Kinds of error about a value's bounds or form; others mean a damaged document, or one of another version."""


def _as_written(value: Any, handler: ValidatorFunctionWrapHandler) -> DeploySpec:
    try:
        return _spec(handler(value))
    except ValidationError as error:
        if not isinstance(value, dict) or not all(_is_about_a_value(one) for one in error.errors()):
            raise
        values, kept = copy.deepcopy(value), {}
        for one in error.errors():
            if one["type"] == "extra_forbidden":
                _replace(values, tuple(map(str, one["loc"])), None)
                continue
            key = _key(one["loc"], values)
            if not key:
                raise
            bounds = [one.get("ctx", {}).get(bound) for bound in ("ge", "le")]
            kept[key] = _replace(values, key, next((bound for bound in bounds if bound is not None), None))
        spec = _spec(handler(values))  # with other values instead; raises for a key without a default
        for key, was in kept.items():
            spec = _put(spec, key, was)
        return spec


def _is_about_a_value(error: ErrorDetails) -> bool:
    """A removed key that was left empty had no effect."""
    return error["type"] in _CHECKS or (error["type"] == "extra_forbidden" and error["input"] is None)


def _spec(value: Any) -> DeploySpec:
    assert isinstance(value, DeploySpec)
    return value


def _key(place: Sequence[int | str], values: Any) -> tuple[str, ...]:
    """The part of an error's location that the document has; the rest are pydantic's own steps, or list items."""
    found: list[str] = []
    for piece in place:
        if not isinstance(values, dict) or piece not in values:
            break
        found.append(str(piece))
        values = values[piece]
    return tuple(found)


def _replace(values: dict[str, Any], key: tuple[str, ...], bound: Any) -> Any:
    """The value as written; the bound, or the default, replaces it."""
    for parent in key[:-1]:
        values = values[parent]
    was = values.pop(key[-1], None)
    if bound is not None:
        values[key[-1]] = bound
    return was


def _put(part: Any, key: tuple[str, ...], was: Any) -> Any:
    name, *rest = key
    if rest:
        return part.model_copy(update={name: _put(getattr(part, name), tuple(rest), was)})
    field: BaseModel = part
    annotation = str(type(field).model_fields[name].annotation)
    value = Path(was) if "Path" in annotation and isinstance(was, str) else was
    return part.model_copy(update={name: _frozen(value)})


def _frozen(value: Any) -> Any:
    """Lists as the spec has them, also below an engine's arguments."""
    if isinstance(value, dict):
        return {key: _frozen(one) for key, one in value.items()}
    return tuple(value) if isinstance(value, list) else value


KeptSpec = Annotated[DeploySpec, WrapValidator(_as_written)]
"""A spec in a document that Slipway wrote."""
