"""Checks of a spec's values, whatever their key. The model applies them, so that they apply to files,
`--set`, the forms of Prefect's UI and its API. Pure."""

from __future__ import annotations

import ipaddress
import re
import types
from collections.abc import Iterator
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from tasks.core.given_files import CONTROL, LONGEST_TEXT, check_path
from tasks.core.sources import FILE, FORMS, HUB, OCI, SCHEMES, parse_hub, parse_oci, scheme_of, split_variant

WEEK_S = 604_800
YEAR_S = 365 * 86_400

_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

LARGEST_SIZE = 2**60
_SIZE = re.compile(r"^\s*([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([kKMGTP]?)(i?)B?\s*$", re.ASCII)
_SIZE_SCHEMA = {
    "anyOf": [
        {"type": "string", "pattern": _SIZE.pattern},
        {"type": "integer", "minimum": 0, "maximum": LARGEST_SIZE},
    ]
}
"""The pattern for forms and servers: the same that the validator accepts."""
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}

_LABEL = re.compile(r"[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DATE_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)

_YEARS = range(1970, 9999)


def parse_size(value: str) -> int:
    """`16Gi` and `16GiB` are 16 x 1024^3, `16G` and `16GB` are 16 x 1000^3, as in Kubernetes. Raises `ValueError`."""
    match = _SIZE.match(value)
    if not match:
        raise ValueError("a size such as 512Mi, 16Gi or 2G")
    number, prefix, binary = match.groups()
    size = float(number) * (1024 if binary else 1000) ** _POWERS[prefix]
    if size > LARGEST_SIZE:
        raise ValueError("a size of at most 1024Pi, such as 512Mi, 16Gi or 2G")
    return int(size)


def _parse_bytes(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


ByteCount = Annotated[
    int, BeforeValidator(_parse_bytes), Field(ge=0, le=LARGEST_SIZE), WithJsonSchema(_SIZE_SCHEMA)
]
"""Bytes; accepts `16Gi`."""


def _host(value: str) -> str:
    """An IP address, or a host name (RFC 1123); whether the host exists is not checked."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        labels = value.split(".")
        named = len(value) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
        if not named or labels[-1].isdigit():  # such as 127.1, which some programs accept as an address
            raise ValueError("an address of this host such as 127.0.0.1 or ::1, or a host name") from None
        return value
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ValueError("an address without a zone, which a URL cannot contain")
    return str(address)


HostName = Annotated[str, AfterValidator(_host)]
"""An address to listen on: IPv4, IPv6 without brackets, or a host name."""


def _time(value: str) -> str:
    """A date, or a date and time with its offset from UTC (RFC 3339), in the range that uv and rattler accept."""
    value = value.upper()
    try:
        if _DATE.fullmatch(value):
            found = date.fromisoformat(value)
        elif _DATE_TIME.fullmatch(value):
            found = datetime.fromisoformat(value)
        else:
            raise ValueError(value)
    except ValueError:
        raise ValueError("a date such as 2026-01-31, or a time such as 2026-01-31T12:00:00Z") from None
    if found.year not in _YEARS:
        raise ValueError(f"a date or a time in the years {_YEARS[0]} to {_YEARS[-1]}")
    return value


Rfc3339 = Annotated[str, AfterValidator(_time)]
"""A date or a time, kept as written except that letters become `T` and `Z`, the only ones that conda's reader
knows."""


def check_value(value: Any, annotation: Any, *, multiline: bool = False) -> Any:
    """`value`, if a key of that type may have it. Raises `PydanticCustomError` or `ValueError`.

    pydantic would turn `true` into 1, `"8"` into 8 and `yes` into true; here values mean what was written.
    `annotation` is the field's type. Text and paths must be printable; only `multiline` ones may have line breaks.
    """
    kinds = set(_kinds(annotation))
    if isinstance(value, bool) and bool not in kinds:
        raise _wrong_kind(f"{_wanted(kinds)}, not {str(value).lower()}")
    if kinds <= {bool, type(None)} and not isinstance(value, bool | None):
        raise _wrong_kind("true or false")
    if isinstance(value, str) and kinds & {int, float} and not kinds & {str, Path} and value not in kinds:
        raise _wrong_kind("a number, not text")
    for text in _texts(value):
        check_text(text, multiline=multiline)
        if Path in kinds:
            check_path(str(text))
    return value


def check_text(text: str, *, multiline: bool = False) -> None:
    """Raise `ValueError` for text that is too long or not printable."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"at most {LONGEST_TEXT} characters")
    if found := (_CONTROL_BUT_LINES if multiline else CONTROL).search(text):
        raise ValueError(f"contains the control character U+{ord(found[0]):04X}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains half of a surrogate pair, which is not text") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str | Path) and not isinstance(value, Enum):
        yield str(value)
    elif isinstance(value, list | tuple):
        for one in value:
            if isinstance(one, str | Path) and not isinstance(one, Enum):
                yield str(one)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types that a field accepts, and the values of its `Literal`."""
    if annotation is ByteCount:
        yield from (int, str)
    elif get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType, tuple):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        yield annotation


def _wrong_kind(what: str) -> PydanticCustomError:
    return PydanticCustomError("wrong_kind", "{what}", {"what": what})


def _wanted(kinds: set[Any]) -> str:
    if kinds & {int, float}:
        return "a number"
    return "text" if str in kinds else "another value"


def check_source(value: str) -> str:
    """The source of a model. Raises `ValueError` for text that is none."""
    if (scheme := scheme_of(value)) is None:
        raise ValueError(f"must be {FORMS}")
    if scheme == FILE:
        check_path(split_variant(value)[0])
    parse = {HUB: parse_hub, OCI: parse_oci}.get(scheme)
    if parse is not None and parse(split_variant(value)[0]) is None:
        raise ValueError(f"must be {SCHEMES[scheme]}")
    return value
