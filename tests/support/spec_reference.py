"""The spec's reference page, made from the model itself: `python tests/support/spec_reference.py > docs/spec.md`."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import EngineKind
from tasks.core.spec_sections import OWN_PYTHON
from tasks.core.spec_values import ByteCount

HEAD = """# The spec

One YAML file says what to deploy. A key that is not in this table is refused, and the error suggests the nearest one.
Paths are relative to the file's folder. `3.N` is the Python that Slipway runs on.
`slipway deploy SPEC --set tuning.max_batch=8` overrides a key.

The file is plain YAML 1.2 of at most 1 MB: true is `true`, never `yes`; a key appears once; anchors, aliases and
tags are refused. Numbers must be finite and within limits, and text must not contain control characters. Whatever the spec
names on this host (texts, folders, GPUs, the address to listen on) is checked before anything is measured.

| key | value | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_rows(DeploySpec, ""))


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _rows(annotation, f"{prefix}{name}.")
            continue
        kind = "size" if field.metadata and _is_size(field) else _kind(annotation)
        yield f"| `{prefix}{name}` | {kind} | {_default(field)} | {field.description} |\n"


def _is_size(field: FieldInfo) -> bool:
    size_parts = get_args(ByteCount)[1:]
    return any(part in size_parts for part in field.metadata)


def _kind(annotation: Any) -> str:
    if annotation is type(None):
        return ""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(filter(None, (_kind(part) for part in get_args(annotation))))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is dict:
        return "mapping"
    if get_origin(annotation) is tuple:
        return f"list of {_kind(get_args(annotation)[0])}"
    if annotation is EngineKind:
        return "a name from `slipway engines`"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if annotation is ByteCount:
        return "size"
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    return {"str": "text", "int": "number", "float": "number", "bool": "true or false", "Path": "path"}[
        annotation.__name__
    ]


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None or field.default in ((), {}):
        return ""
    if isinstance(field.default, tuple):
        return f"`[{', '.join(str(value) for value in field.default)}]`"
    if isinstance(field.default, str):
        return f"`{field.default.replace(OWN_PYTHON, '3.N')}`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    print(page(), end="")
