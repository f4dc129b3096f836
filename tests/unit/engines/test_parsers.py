"""Names and parsers of a service: which an engine has, and how its command line chooses them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tasks.core.errors import SpecError
from tasks.core.serving import ServingConfig
from tasks.core.spec import parse_spec
from tasks.core.spec_kinds import EngineKind
from tasks.core.spec_sections import Serving
from tasks.engines.card import read_card
from tasks.engines.parsers import check_parsers


@pytest.mark.parametrize(
    ("kind", "serving", "told", "fix"),
    [
        ("vllm", {"tool_parser": "hermess"}, "serving.tool_parser: vLLM 0.32.0 has no 'hermess'", "'hermes'"),
        ("vllm", {"reasoning_parser": "zzz"}, "serving.reasoning_parser: vLLM 0.32.0 has no 'zzz'", "choose one of"),
        ("vllm", {"structured_output": "auto2"}, "serving.structured_output: vLLM 0.32.0 has no", "'auto'"),
        ("llama.cpp", {"tool_parser": "hermes"}, "llama.cpp 2026.10.11549 has no 'hermes'", "choose one of auto"),
        ("transformers", {"tool_parser": "auto"}, "Transformers serve has no such setting", "llama.cpp or sglang or vllm"),
        ("sglang", {"tool_parser": "hermess"}, "serving.tool_parser: SGLang 0.5.23 has no 'hermess'", "'hermes'"),
        ("sglang", {"names": ["ours", "org/m:1"]}, "the colon in 'org/m:1' for an adapter", "without a colon"),
    ],
)  # fmt: skip
def test_a_parser_that_the_engine_does_not_have_is_refused(
    kind: str, serving: dict[str, Any], told: str, fix: str
) -> None:
    with pytest.raises(SpecError) as refused:
        check_parsers(EngineKind(kind), Serving(**serving), ())
    assert told in refused.value.what
    assert fix in str(refused.value.fix)


def test_the_names_of_another_release_are_left_to_the_engine() -> None:
    serving = Serving(tool_parser="new_one")
    check_parsers(EngineKind("vllm"), serving, (), "0.40.0")
    with pytest.raises(SpecError):
        check_parsers(EngineKind("vllm"), serving, (), "0.32.0")


def test_a_parser_is_chosen_in_one_place() -> None:
    with pytest.raises(SpecError, match="sets --tool-call-parser, which engine_args set as well"):
        check_parsers(EngineKind("vllm"), Serving(tool_parser="hermes"), ("tool-call-parser",))
    check_parsers(EngineKind("vllm"), Serving(), ("tool-call-parser",))


@pytest.mark.parametrize("kind", EngineKind)
def test_a_card_names_each_parser_once(kind: EngineKind) -> None:
    rows = read_card(kind).parser
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        assert sorted(set(row.names)) == list(row.names)
        assert row.default in (None, *row.names)
        assert row.arguments or row.names == (row.default,)


@pytest.mark.parametrize(
    "names", [["a b"], [""], ["-a"], ["a", "a"], ["ä"], ["a" * 101], ["a\nb"], [7], "a"], ids=str
)
def test_a_bad_name_is_refused(names: Any) -> None:
    with pytest.raises(SpecError, match=r"serving\.names"):
        parse_spec({"name": "chat", "model": "file:/m", "serving": {"names": names}})


def test_the_services_own_name_is_not_a_further_one() -> None:
    with pytest.raises(SpecError, match="chat is the service's own name"):
        parse_spec({"name": "chat", "model": "file:/m", "serving": {"names": ["other", "chat"]}})


@pytest.mark.parametrize(
    "field", [{"names": ("--trust-remote-code",)}, {"tool_parser": "--api-key"}], ids=str
)
def test_a_configuration_brings_no_further_arguments(field: dict[str, Any]) -> None:
    """It may come through the API, with a release."""
    with pytest.raises(ValidationError):
        ServingConfig(served_name="chat", batch=1, context=64, threads=1, **field)
