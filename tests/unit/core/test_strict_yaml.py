"""YAML is read strictly and within bounds, by the quick parser and by the one that is always there."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tasks.core import strict_yaml
from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, load_spec
from tasks.core.strict_yaml import parse_yaml


@pytest.fixture(params=["libyaml", "pure"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module with each of PyYAML's two parsers."""
    if request.param == "pure":
        monkeypatch.setattr(strict_yaml, "_LOADER", yaml.SafeLoader)
    return strict_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("0o10", "0o10"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("'5'", "5"),
        ("5", 5),
        ("-5", -5),
        ("0", 0),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("# nothing", None),
        ("[a, {b: 1}]", ["a", {"b": 1}]),
        ("%YAML 1.2\n---\na: >\n  b\n  c\n", {"a": "b c\n"}),
        ("on: {null: 1}", {"on": {"null": 1}}),
    ],
)
def test_scalars_are_those_of_the_core_schema(reader: ModuleType, text: str, value: object) -> None:
    found = reader.parse_yaml(text, "F")
    assert (found, type(found)) == (value, type(value))


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "F, line 4: the key 'c' occurs twice"),
        ("a: {b: 1, b: 2}", "F, line 1: the key 'b' occurs twice"),
        (BOMB, "F, line 1: anchors and aliases are not supported"),
        ("a: *b", "F, line 1: anchors and aliases are not supported"),
        ("&a b: 1", "F, line 1: anchors and aliases are not supported"),
        (
            "a: !!python/object/apply:os.system [id]",
            "F, line 1: the tag 'tag:yaml.org,2002:python/object/apply:",
        ),
        ("a: !!str 5", "F, line 1: the tag 'tag:yaml.org,2002:str' is not supported"),
        ("a: ! 5", "F, line 1: the tag '!' is not supported"),
        ("[" * 100_000, "F, line 1: values are nested more than 16 deep"),
        ("- " * 100_000, "F, line 1: values are nested more than 16 deep"),
        ("{a: " * 100_000, "F, line 1: values are nested more than 16 deep"),
        ("{" * 100_000, "F, line 1: a key is a list or a mapping"),
        ("? " * 100_000, "F, line 1: a key is a list or a mapping"),
        ("\n- 1" * 20_000, "F, line 10001: it has more than 10000 values"),
        ("a: 1\n---\nb: 2", "F, line 2: a second document begins"),
        ("a: 9" + "0" * 5000, "F, line 1: a number has 5001 digits"),
        ("a: 1" + " " * 1_000_000, "F is too large: at most 1 MB are read"),
        ("a: [\n", "F, line 2 is not YAML: "),
        ("a:\n\tb: 1", "F, line "),
        ("a: \x00", "F is not YAML: unacceptable character #x0000"),
        ("a: \x1b[2J", "F is not YAML: unacceptable character #x001b"),
        ("a: \ud800", "F is not YAML: "),
        ('a: "\\UFFFFFFFF"', "F"),
        ("%YAML 3.0\n---\na: 1", "F, line 1 is not YAML: found incompatible YAML document"),
    ],
)
def test_what_is_refused_is_one_line_with_its_place(reader: ModuleType, text: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        reader.parse_yaml(text, "F")
    assert refused.value.what.startswith(message)
    assert len(refused.value.what) < 300


_PIECES = st.sampled_from(
    [
        "name: tiny",
        "model: file:m",
        "tuning:",
        "  load:",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "\n",
        "  ",
        "\t",
        "&a ",
        "*a",
        "!!str ",
        "? ",
        "| ",
        "> ",
        "'",
        '"',
        "%",
        "---\n",
        "...\n",
        "#",
        "1",
        ".inf",
        "1e999",
        "\\",
        "~",
        "\x00",
        "\ud800",
        "\u2028",
        "\ufeff",
        "é",
        "<<: ",
        "max_batch: ",
        "rollout: {port: ",
    ]
)


@given(st.lists(_PIECES, max_size=40).map("".join) | st.text(max_size=60))
def test_any_text_is_a_value_or_one_error(text: str) -> None:
    try:
        parse_yaml(text, "F")
    except SpecError as error:
        assert "\n" not in error.what


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("specs") / "spec.yaml"


@given(st.lists(_PIECES, max_size=40).map("".join), st.booleans())
def test_any_file_is_a_spec_or_one_error(spec_file: Path, text: str, begun: bool) -> None:
    head = "name: tiny\nmodel: file:m\n" if begun else ""
    spec_file.write_bytes((head + text).encode(errors="surrogatepass"))
    try:
        assert isinstance(load_spec(spec_file), DeploySpec)
    except SpecError as error:
        assert "\n" not in str(error)


@given(st.lists(_PIECES, min_size=1, max_size=12).map("".join))
def test_any_override_is_a_spec_or_one_error(spec_file: Path, text: str) -> None:
    spec_file.write_text("name: tiny\nmodel: file:m\n")
    for override in (text, f"tuning.max_batch={text}", f"{text}=1"):
        try:
            assert isinstance(load_spec(spec_file, [override]), DeploySpec)
        except SpecError as error:
            assert "\n" not in str(error)
