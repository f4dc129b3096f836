"""Every key of the spec with wrong values: one line that names the key, or a value that can be kept and used."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, load_spec, parse_spec
from tasks.core.spec_sections import Environment

MINIMAL: dict[str, Any] = {"name": "tiny", "model": "file:model"}
NEEDED: dict[str, dict[str, Any]] = {
    "tuning.load.rate": {"tuning": {"load": {"kind": "open"}}},
    "environment.channels": {"environment": {"manager": "conda"}},
    "environment.path": {"environment": {"manager": "system"}},
    "tuning.task_set": {"tuning": {"quality_text": "t"}},
}
"""What must be there for a key to be looked at by itself."""

FLOATS = {
    "inf": math.inf,
    "-inf": -math.inf,
    "nan": math.nan,
    "huge float": 1e308,
    "huge negative float": -1e308,
    "huge int": 10**30,
    "negative": -1,
}
"""No key takes these."""
WRONG = {
    "true": True,
    "NUL": "a\0b",
    "escape": "a\x1b[2Jb",
    "newline": "a\nb",
    "half a character": "\ud800",
    "too long": "x" * 100_000,
    "mapping": {"zzz": 1},
    "list of NUL": ["a\0b"],
    "list of lists": [[1]],
    "deep list": [[[[[[[[[[]]]]]]]]]],
}
DOUBTFUL = {
    "300 letters": "x" * 300,
    "name of 300 letters": f"file:/a/{'x' * 300}/b",
    "empty": "",
    "text of a number": "8",
    "yes": "yes",
    "sexagesimal": "1:30",
    "tiny": 5e-324,
    "fraction": 1.5,
    "zero": 0,
    "null": None,
    "empty list": [],
    "home of nobody": "~nosuchuser/x",
}
"""Some keys take these."""


def keys(model: type[BaseModel] = DeploySpec, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield f"{prefix}{name}", field.annotation
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.annotation


KEYS = dict(keys())


def kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, tuple):
        return set().union(*(kinds(part) for part in get_args(annotation)))
    return {annotation}


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in more.items():
        here = both.get(key)
        both[key] = merged(here, value) if isinstance(here, dict) and isinstance(value, dict) else value
    return both


def values_with(key: str, value: Any) -> dict[str, Any]:
    *parents, last = key.split(".")
    nested: dict[str, Any] = {last: value}
    for parent in reversed(parents):
        nested = {parent: nested}
    return merged(merged(MINIMAL, NEEDED.get(key, {})), nested)


def refused(key: str, value: Any) -> SpecError | None:
    """The one line, which names the key; None for a value that the spec keeps as it is."""
    try:
        spec = parse_spec(values_with(key, value))
    except SpecError as error:
        assert "\n" not in str(error)
        assert "\0" not in str(error)
        assert len(str(error)) < 600
        assert error.what.startswith(
            (f"spec: {key}", f"spec: unknown key '{key}.", f"spec: {key.split('.')[0]}")
        )
        return error
    document = json.loads(spec.model_dump_json())
    assert DeploySpec.model_validate_json(spec.model_dump_json()) == spec
    assert parse_spec(document) == spec
    return None


@pytest.mark.parametrize("wrong", FLOATS)
@pytest.mark.parametrize("key", KEYS)
def test_no_key_takes_a_number_that_is_none(key: str, wrong: str) -> None:
    error = refused(key, FLOATS[wrong])
    assert error is not None
    assert key in error.what


TAKEN = {("rollout.gate.prompt", "newline"), ("engine_args", "mapping")}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("key", KEYS)
def test_no_key_takes_what_is_not_of_its_kind(key: str, wrong: str) -> None:
    takes_it = (wrong == "true" and bool in kinds(KEYS[key])) or (key, wrong) in TAKEN
    assert (refused(key, WRONG[wrong]) is None) == takes_it


@pytest.mark.parametrize("doubtful", DOUBTFUL)
@pytest.mark.parametrize("key", KEYS)
def test_a_doubtful_value_is_one_line_or_kept(key: str, doubtful: str) -> None:
    refused(key, DOUBTFUL[doubtful])


NUMBERS = [key for key, annotation in KEYS.items() if kinds(annotation) & {int, float}]


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_is_not_read_from_other_things(key: str) -> None:
    for value in (True, False, "yes", "1:30", "1_000", "0x10", " 8 ", "8e0", "٣"):
        assert refused(key, value) is not None, value


@pytest.mark.parametrize("key", [key for key in NUMBERS if float not in kinds(KEYS[key])])
def test_a_whole_number_may_be_written_with_a_point_and_no_other_may(key: str) -> None:
    good = next(value for value in (32, 4096, 2**30) if refused(key, value) is None)
    assert refused(key, float(good)) is None
    assert refused(key, good + 0.5) is not None


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_both_bounds_where_forms_show_them(key: str) -> None:
    properties: Any = DeploySpec.model_json_schema()
    here = properties
    for name in key.split("."):
        here = here["properties"][name]
        while "$ref" in here:
            here = properties["$defs"][here["$ref"].rpartition("/")[2]]
    shown: list[dict[str, Any]] = []
    for form in here.get("anyOf", [here]):
        shown += form.get("anyOf", [form])
    forms = [form for form in shown if form.get("type") in ("number", "integer")]
    assert forms
    for form in forms:
        assert {"minimum", "exclusiveMinimum"} & set(form)
        assert {"maximum", "exclusiveMaximum"} & set(form)


@pytest.mark.parametrize(
    ("host", "kept"),
    [
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::", "::"),
        ("0.0.0.0", "0.0.0.0"),
        ("localhost", "localhost"),
        ("gpu-7.example.org", "gpu-7.example.org"),
        ("[::1]", None),
        ("fe80::1%eth0", None),
        ("127.1", None),
        ("256.0.0.1", None),
        ("2130706433", None),
        ("a b", None),
        ("a/b", None),
        ("-a", None),
        ("a..b", None),
        ("localhost:8000", None),
        ("http://localhost", None),
        ("x" * 64, None),
        ("ж.example", None),
    ],
)
def test_a_host_is_an_address_or_a_name(host: str, kept: str | None) -> None:
    try:
        assert parse_spec(values_with("rollout.host", host)).rollout.host == kept
    except SpecError as error:
        assert kept is None, error
        assert error.what.startswith("spec: rollout.host: an address")


@pytest.mark.parametrize(
    ("when", "good"),
    [
        ("2026-01-31", True),
        ("2026-01-31T12:00:00Z", True),
        ("2026-01-31t12:00:00.123+01:00", True),
        ("2026-01-31t12:00:00z", True),
        ("2026-01-31T12:00:00.123456789Z", True),
        ("2026-01-31T12:00:00.1234567891Z", False),
        ("1970-01-01", True),
        ("9998-12-31T23:59:59-23:59", True),
        ("1969-12-31", False),
        ("1969-12-31T23:59:59Z", False),
        ("0001-01-01", False),
        ("9999-12-31", False),
        ("9999-12-31T00:00:00Z", False),
        ("2026-01-31 12:00:00Z", False),
        ("2026-01-31T12:00:00", False),
        ("2026-02-30", False),
        ("2026-01-31T25:00:00Z", False),
        ("20260131", False),
        ("2026-W05", False),
        ("yesterday", False),
        ("3 days", False),
        ("2026-01-31\n", False),
    ],
)
def test_exclude_newer_is_a_time_of_rfc_3339(when: str, good: bool) -> None:
    assert (refused("environment.exclude_newer", when) is None) == good
    if good:
        kept = Environment(exclude_newer=when).exclude_newer
        assert kept == when.upper()
        assert datetime.fromisoformat(kept)


@pytest.mark.parametrize("key", ["model", "tuning.quality_text", "environment.wheels"])
def test_the_home_of_a_user_that_does_not_exist_is_one_line(tmp_path: Path, key: str) -> None:
    file = tmp_path / "spec.yaml"
    values = {"model": "file:m", key: f"{'file:' if key == 'model' else ''}~nosuchuser/x"}
    file.write_text(f"name: tiny\nmodel: {values['model']}\n")
    with pytest.raises(SpecError, match=f"{key}: the user 'nosuchuser' does not exist or has no home"):
        load_spec(file, [f"{key}={values[key]}"])


def test_a_path_through_a_file_and_a_loop_of_links_are_one_line_or_kept(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    (tmp_path / "loop").symlink_to("loop")
    file.write_text("name: tiny\nmodel: file:loop\n")
    assert load_spec(file).model == f"file:{tmp_path / 'loop'}"
    with pytest.raises(SpecError, match=r"tuning\.quality_text: 'spec\.yaml/x': Not a directory"):
        load_spec(file, ["tuning.quality_text=spec.yaml/x"])


def test_a_load_that_takes_days_is_refused() -> None:
    load = {"kind": "open", "rate": 0.001, "requests": 1000}
    with pytest.raises(SpecError, match=r"1000 requests at 0\.001/s take more than a day"):
        parse_spec({**MINIMAL, "tuning": {"load": load}})


def test_the_api_is_held_to_the_same() -> None:
    """Prefect hands the flow's parameters to the model, not to the reader of files."""
    for value in (math.inf, True, "30"):
        with pytest.raises(ValidationError):
            DeploySpec.model_validate(values_with("rollout.drain_s", value))
