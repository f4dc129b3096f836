"""What a spec may hand to its engine, by its form."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, parse_spec
from tasks.core.spec_values import check_text


def spec_of(**keys: Any) -> DeploySpec:
    return parse_spec({"name": "x", "model": "file:/m", **keys})


ARGUMENTS: dict[str, tuple[Any, Any]] = {
    "underscores are dashes": ({"max_logprobs": 5}, {"max-logprobs": 5}),
    "but for keys behind a dot": ({"hf_overrides.max_len": 5}, {"hf-overrides.max_len": 5}),
    "false is left out": ({"a": False}, {}),
    "nothing is left out": ({"a": None}, {}),
    "true is a flag": ({"a": True}, {"a": True}),
    "the order of the file does not count": ({"b": 1, "a": 2}, {"a": 2, "b": 1}),
    "a list is a list": ({"a": [1, "b", 0.5]}, {"a": (1, "b", 0.5)}),
    "text that looks like a number stays text": ({"a": "08"}, {"a": "08"}),
    "JSON text": ({"a": '{"b": 1}'}, {"a": '{"b": 1}'}),
    "tokens are no secret": ({"num-speculative-tokens": 3, "end-token": "abcdefgh"}, None),
    "a path is no secret": ({"api-key-file": "/etc/keys/engine"}, None),
}


@pytest.mark.parametrize("case", list(ARGUMENTS))
def test_arguments_have_one_spelling(case: str) -> None:
    given, wanted = ARGUMENTS[case]
    found = spec_of(engine_args=given).engine_args
    assert found == (wanted if wanted is not None else given)
    assert list(found) == sorted(found)
    assert spec_of(engine_args=found).engine_args == found


WRONG: dict[str, tuple[Any, str]] = {
    "dashes": ({"--seed": 1}, "write '--seed' without the dashes: 'seed'"),
    "one dash": ({"-tp": 2}, "write '-tp' without the dashes: 'tp'"),
    "a value in the name": ({"seed=1": True}, "write the value of 'seed=1' after a colon: seed: 1"),
    "a space": ({"a b": 1}, "'a b' is not the name of an argument"),
    "no name": ({"": 1}, "'' is not the name of an argument"),
    "a number": ({8: 1}, "8 is not the name of an argument: write it in quotes"),
    "twice": ({"a-b": 1, "a_b": 2}, "a-b is there twice, with dashes and with underscores"),
    "twice, one left out": ({"a-b": 1, "a_b": False}, "a-b is there twice"),
    "a mapping": ({"a": {"b": 1}}, "a: write a mapping as JSON text in quotes"),
    "a list of lists": ({"a": [[1]]}, "a: text, a number, true, or a list"),
    "true in a list": ({"a": [True]}, "a: text, a number, true, or a list"),
    "an empty list": ({"a": []}, "a: an empty list"),
    "a list instead of a mapping": (["a"], "a mapping of arguments to values"),
    "a control character": ({"a": "b\x07"}, "a: contains the control character U+0007"),
    "a line break": ({"a": "b\nc"}, "a: contains the control character U+000A"),
    "a placeholder": ({"a": "http://{host}/"}, "a: {host} and {port} are filled in by Slipway"),
    "a secret by its look": ({"a": "hf_AbCdEfGhIjKlMnOpQrStUv"}, "a looks like a secret"),
    "a secret by its name": ({"hf-token": "abc"}, "hf-token looks like a secret"),
    "a secret in JSON": ({"a": '{"api_key": "abcdefgh"}'}, "a looks like a secret"),
    "a secret in a list": ({"a": ["b", "https://me:word@host/"]}, "a looks like a secret"),
    "too many": ({f"a{number}": 1 for number in range(201)}, "at most 200"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_an_argument_that_cannot_be_is_named(case: str) -> None:
    given, said = WRONG[case]
    with pytest.raises(SpecError) as caught:
        spec_of(engine_args=given)
    assert caught.value.what.startswith("spec: engine_args: ")
    assert said in caught.value.what
    assert "hf_AbCd" not in caught.value.what


VARIABLES = {
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "NCCL_DEBUG": "INFO",
    "OMP_WAIT_POLICY": "active",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE": "163840",
    "HF_TOKEN_PATH": "/etc/keys/hub",
    "SHORT_PASSWORD": "1",
    "EMPTY": "",
}


@pytest.mark.parametrize("name", list(VARIABLES))
def test_a_variable_goes_to_the_engine(name: str) -> None:
    assert spec_of(engine_env={name: VARIABLES[name]}).engine_env == {name: VARIABLES[name]}


WRONG_VARIABLES: dict[str, tuple[Any, str]] = {
    "GPUs": ({"CUDA_VISIBLE_DEVICES": "1"}, "set hardware.gpus instead"),
    "their order": ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, "set hardware.gpus instead"),
    "GPUs of a container": ({"NVIDIA_VISIBLE_DEVICES": "all"}, "set hardware.gpus instead"),
    "threads": ({"OMP_NUM_THREADS": "4"}, "set hardware.cpus instead"),
    "llama.cpp's options": ({"LLAMA_ARG_HOST": "0.0.0.0"}, "use engine_args instead"),
    "the network": ({"HF_HUB_OFFLINE": "0"}, "the engine serves what was staged"),
    "programs": ({"PATH": "/x"}, "it decides how Slipway runs the engine's process"),
    "libraries": ({"LD_PRELOAD": "/x.so"}, "it decides how Slipway runs"),
    "libraries' folders": ({"LD_LIBRARY_PATH": "/x"}, "it decides how Slipway runs"),
    "modules": ({"PYTHONPATH": "/x"}, "it decides how Slipway runs"),
    "Slipway's own": ({"SLIPWAY_HOME": "/x"}, "it decides how Slipway runs"),
    "in small letters": ({"ld_preload": "/x.so"}, "it decides how Slipway runs"),
    "a number": ({"A": 1}, "A: text; write numbers, true and false in quotes"),
    "true": ({"A": True}, "A: text; write numbers"),
    "nothing": ({"A": None}, "A: text; write numbers"),
    "no name": ({"A-B": "1"}, "'A-B' is not the name of a variable"),
    "an equals sign": ({"A=B": "1"}, "'A=B' is not the name of a variable"),
    "a list": (["A=1"], "a mapping of variables to texts"),
    "a control character": ({"A": "\x00"}, "A: contains the control character U+0000"),
    "a secret by its name": ({"HF_TOKEN": "not-random"}, "HF_TOKEN looks like a secret"),
    "a key": ({"VLLM_API_KEY": "not-random"}, "VLLM_API_KEY looks like a secret"),
    "a secret by its look": ({"A": "ghp_AbCdEfGhIjKlMnOpQrStUvWx"}, "A looks like a secret"),
}


@pytest.mark.parametrize("case", list(WRONG_VARIABLES))
def test_a_variable_that_cannot_be_is_named(case: str) -> None:
    given, said = WRONG_VARIABLES[case]
    with pytest.raises(SpecError) as caught:
        spec_of(engine_env=given)
    assert caught.value.what.startswith("spec: engine_env: ")
    assert said in caught.value.what
    assert "not-random" not in caught.value.what


@pytest.mark.parametrize(
    ("given", "version"), [("0.32.0", "0.32.0"), ("v1.2", "1.2"), ("1.0+cpu", "1.0+cpu")]
)
def test_a_release_has_one_spelling(given: str, version: str) -> None:
    assert spec_of(engine_version=given).engine_version == version


@pytest.mark.parametrize("given", ["newest", ">=1", "", 0.32, True])
def test_a_release_is_one_release(given: Any) -> None:
    with pytest.raises(SpecError, match="engine_version"):
        spec_of(engine_version=given)


def test_an_environment_that_exists_has_its_own_release() -> None:
    system = {"manager": "system", "path": "/env"}
    with pytest.raises(SpecError, match="engine_version is for environments that Slipway builds"):
        spec_of(engine_version="1.0", environment=system)


def test_the_keys_have_a_schema_for_forms() -> None:
    properties = TypeAdapter(DeploySpec).json_schema()["properties"]
    assert properties["engine_args"]["type"] == properties["engine_env"]["type"] == "object"


def test_text_is_of_one_line() -> None:
    with pytest.raises(ValueError, match=r"U\+000A"):
        check_text("a\nb")
