"""The YAML of a spec: one document of plain values, read strictly and within limits.

The scalars are those of YAML 1.2's core schema without octal and hexadecimal numbers. YAML 1.1, which PyYAML's own
loaders follow, reads `1:30` as 90, `010` as 8, `no` as false and `2026-01-31` as a date; here these are text, and a
key that does not accept text refuses them. Duplicate keys, tags, anchors and aliases are refused with their line.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from tasks.core.errors import SpecError

LIMIT_BYTES = 1_000_000
"""Largest document."""

_DEEPEST = 16
_MOST_VALUES = 10_000
_LONGEST_NUMBER = 64
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Only its parser is used, which yields events, so the limits are checked before anything is built."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{f"{sign}{word}": float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


def parse_yaml(text: str, source: str) -> Any:
    """The value of one YAML document; None for an empty one. Raises `SpecError` that names `source` and the line."""
    if len(text) > LIMIT_BYTES:
        raise SpecError(f"{source} is too large: at most {LIMIT_BYTES / 1e6:g} MB are read")
    try:
        return _Reader(yaml.parse(text, Loader=_LOADER), source).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"{source}{place} is not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: invalid escapes
        why = str(error).partition("\n")[0]
        raise SpecError(f"{source} is not YAML: {why[:200]}") from None


class _Reader:
    """Builds the values from the parser's events."""

    def __init__(self, events: Iterator[yaml.Event], source: str) -> None:
        self._events = events
        self._source = source
        self._values = 0

    def document(self) -> Any:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), depth=0)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._refusal(after, "a second document begins", "use one document per file")
        return value

    def _value(self, event: yaml.Event, depth: int) -> Any:
        self._check(event, depth)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(depth)
        if isinstance(event, yaml.SequenceStartEvent):
            values = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                values.append(self._value(event, depth + 1))
            return values
        assert isinstance(event, yaml.ScalarEvent)  # the parser's grammar leaves nothing else
        return self._plain(event) if event.implicit[0] else event.value

    def _mapping(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            self._check(key, depth + 1)
            if not isinstance(key, yaml.ScalarEvent):
                raise self._refusal(key, "a key is a list or a mapping", "write keys as plain words")
            if key.value in values:
                raise self._refusal(key, f"the key {key.value[:80]!r} occurs twice", "keep one of them")
            values[key.value] = self._value(next(self._events), depth + 1)
        return values

    def _plain(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if text in _WORDS:
            return _WORDS[text]
        read = int if _INT.fullmatch(text) else float if _FLOAT.fullmatch(text) else str
        if read is not str and len(text) > _LONGEST_NUMBER:
            raise self._refusal(event, f"a number has {len(text)} digits", "write it shorter")
        return read(text)

    def _check(self, event: yaml.Event, depth: int) -> None:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self._refusal(event, f"it has more than {_MOST_VALUES} values")
        if depth > _DEEPEST:
            raise self._refusal(event, f"values are nested more than {_DEEPEST} deep")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self._refusal(event, "anchors and aliases are not supported", "write the value itself")
        tag: str | None = getattr(event, "tag", None)
        if tag is not None:
            raise self._refusal(event, f"the tag {tag[:80]!r} is not supported", "write the plain value")

    def _refusal(self, event: yaml.Event, what: str, fix: str | None = None) -> SpecError:
        line = event.start_mark.line + 1 if event.start_mark else "?"
        return SpecError(f"{self._source}, line {line}: {what}", fix=fix)
