"""Errors of a spec, in one line that names the key. Pure."""

from __future__ import annotations

import difflib
import reprlib
import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tasks.core.errors import SpecError

_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlevel = 80, 80, 3
"""A wrong value on one line, however long or deep it is."""


def explain(error: ValidationError, source: str, model: type[BaseModel]) -> SpecError:
    """The first wrong key of `source`, which should be a `model`, and the nearest known key."""
    first = error.errors()[0]
    pieces = [str(piece)[:80] for piece in first["loc"]]
    path = ".".join(piece for piece in pieces if not piece.startswith(("int", "constrained-int", "literal[")))
    if first["type"] == "extra_forbidden":
        *parents, key = [str(piece) for piece in first["loc"]]
        known = _keys_at(model, parents)
        near = difflib.get_close_matches(key[:80], known, n=1, cutoff=0.4)
        fix = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
        return SpecError(f"{source}: unknown key {path!r}", fix=fix)
    if first["type"] == "missing":
        return SpecError(f"{source}: the key {path!r} is missing", fix=f"add `{path}: …`")
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    hidden = isinstance(given, (dict, BaseModel)) or pieces[-1:] == ["api_key"]  # it may be the key itself
    shown = "" if hidden else f" (got {_SHORT.repr(given)})"
    return SpecError(f"{source}: {path}: {message}{shown}")


def _keys_at(model: type[BaseModel], parents: Sequence[str]) -> list[str]:
    for parent in parents:
        field = model.model_fields.get(parent)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
    return None
