"""Which arguments of a spec an engine gets, and how they are written."""

from __future__ import annotations

from typing import Any

import pytest
from engine_golden import CONFIG, ON_PROCESSOR
from inline_snapshot import snapshot
from pydantic import BaseModel

from tasks.core.errors import SpecError
from tasks.core.spec import DeploySpec, parse_spec
from tasks.core.spec_kinds import EngineKind
from tasks.engines.arguments import (
    check_arguments,
    options_in,
    programs_of_arguments,
    refuse_unknown,
    render,
)
from tasks.engines.base import Engine
from tasks.engines.card import read_card
from tasks.engines.catalogue import deployable_engines

LLAMA_CPP, VLLM, TRANSFORMERS = EngineKind.LLAMA_CPP, EngineKind("vllm"), EngineKind.TRANSFORMERS
every_engine = pytest.mark.parametrize("engine", deployable_engines(), ids=lambda one: one.kind)

NOT_OWNED = {"--enforce-eager"}
"""Set on the CPU, where the engine needs it; on GPUs it is the user's choice."""


def arguments_of(engine: EngineKind, given: dict[str, Any]) -> Any:
    """As a spec gives them."""
    return parse_spec({"name": "x", "model": "file:/m", "engine": engine, "engine_args": given}).engine_args


OWNED: tuple[tuple[EngineKind, str, str], ...] = (
    (VLLM, "host", "set rollout.host instead"),
    (VLLM, "port", "set rollout.port instead"),
    (VLLM, "model", "set model instead"),
    (VLLM, "served_model_name", "set name instead"),
    (VLLM, "max-model-len", "set tuning.context instead"),
    (VLLM, "max_num_seqs", "set tuning.max_batch instead"),
    (VLLM, "gpu-memory-utilization", "set objectives.memory_fraction instead"),
    (VLLM, "tensor_parallel_size", "set hardware.gpus instead"),
    (VLLM, "tp", "set hardware.gpus instead"),
    (VLLM, "q", "set tuning.candidates instead"),
    (VLLM, "quantization", "set tuning.candidates instead"),
    (VLLM, "config", "remove it"),
    (VLLM, "api-key", "set serving.api_key instead"),
    (VLLM, "trust_remote_code", "set serving.trust_remote_code instead"),
    (VLLM, "no-trust-remote-code", "set serving.trust_remote_code instead"),
    (VLLM, "load-format", "remove it"),
    (LLAMA_CPP, "ctx_size", "set tuning.context instead"),
    (LLAMA_CPP, "c", "set tuning.context instead"),
    (LLAMA_CPP, "ngl", "set hardware.gpus instead"),
    (LLAMA_CPP, "np", "set tuning.max_batch instead"),
    (LLAMA_CPP, "ub", "remove it"),
    (LLAMA_CPP, "no-cont-batching", "remove it"),
    (TRANSFORMERS, "force_model", "set model instead"),
    (TRANSFORMERS, "device", "set hardware.gpus instead"),
    (TRANSFORMERS, "no-continuous-batching", "set hardware.gpus instead"),
)


@pytest.mark.parametrize(("engine", "name", "fix"), OWNED, ids=[f"{one[0]}: {one[1]}" for one in OWNED])
def test_what_slipway_sets_is_refused_with_its_key(engine: EngineKind, name: str, fix: str) -> None:
    with pytest.raises(SpecError) as caught:
        check_arguments(engine, arguments_of(engine, {name: "1"}))
    assert caught.value.what.startswith(f"engine_args.{name.replace('_', '-')}: ")
    assert caught.value.fix == fix


def test_a_key_below_what_slipway_sets_is_refused_too() -> None:
    with pytest.raises(SpecError, match=r"engine_args\.quantization\.method"):
        check_arguments(VLLM, arguments_of(VLLM, {"quantization.method": "fp8"}))


@every_engine
def test_all_that_the_command_sets_is_on_the_card(engine: Engine) -> None:
    """Else a spec could give it a second time, and the last one counts."""
    commands = [engine.command("/e/bin/python", "w.py", "/m", config) for config in (CONFIG, ON_PROCESSOR)]
    options = {word for command in commands for word in command.argv if word.startswith("--")} - NOT_OWNED
    assert {option.removeprefix("--").replace("_", "-") for option in options} <= set(engine.card.owned)


@every_engine
def test_each_key_that_a_card_names_is_one_of_the_specs(engine: Engine) -> None:
    for key in engine.card.owned.values():
        if " " not in key:
            model: type[BaseModel] | None = DeploySpec
            for part in key.split("."):
                assert model is not None
                annotation = model.model_fields[part].annotation
                model = (
                    annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
                )


@every_engine
def test_no_argument_is_both_slipways_and_the_specs(engine: Engine) -> None:
    assert not set(engine.card.owned) & set(engine.card.arguments)


def test_an_argument_that_the_worker_does_not_read_is_refused_with_the_nearest() -> None:
    check_arguments(LLAMA_CPP, arguments_of(LLAMA_CPP, {"cache_type_k": "q8_0"}))
    with pytest.raises(SpecError, match=r"llama\.cpp has no argument --cache-typek") as caught:
        check_arguments(LLAMA_CPP, arguments_of(LLAMA_CPP, {"cache_typek": "q8_0"}))
    assert caught.value.fix == "did you mean 'cache-type-k'?"


GIVEN: dict[str, Any] = {
    "list": ["a", 2],
    "middleware": ["a.B", "c.D"],
    "flag": True,
    "off": False,
    "number": -1,
    "text": "--host=0.0.0.0",
    "json.key_one": "{}",
}


def test_arguments_are_written_as_the_engine_reads_them() -> None:
    written = {kind: render(read_card(kind), arguments_of(kind, GIVEN)) for kind in (VLLM, TRANSFORMERS)}
    assert written == snapshot(
        {
            VLLM: (
                "--flag",
                "--json.key_one={}",
                "--list",
                "a",
                "2",
                "--middleware=a.B",
                "--middleware=c.D",
                "--number=-1",
                "--text=--host=0.0.0.0",
            ),
            TRANSFORMERS: (
                "--flag",
                "--json.key_one={}",
                "--list=a",
                "--list=2",
                "--middleware=a.B",
                "--middleware=c.D",
                "--number=-1",
                "--text=--host=0.0.0.0",
            ),
        }
    )


def test_a_value_in_a_list_cannot_be_another_argument() -> None:
    check_arguments(VLLM, arguments_of(VLLM, {"stop": [-1], "middleware": ["-a"]}))
    with pytest.raises(SpecError, match="vLLM reads the value '--host=0' as another argument"):
        check_arguments(VLLM, arguments_of(VLLM, {"stop": ["a", "--host=0"]}))


HELP = """usage: vllm serve [model_tag] [options]
  --max-logprobs MAX_LOGPROBS
                        Largest number; see `--logprobs_mode`. (default: 20)
  --enable-prefix-caching, --no-enable-prefix-caching
  -O LEVEL, --optimization-level LEVEL
  --hf-overrides HF_OVERRIDES, --json-arg.key1 and so on -- or not---at-all
"""


def test_options_are_found_in_a_help() -> None:
    assert options_in(HELP) == {
        "max-logprobs",
        "logprobs-mode",
        "enable-prefix-caching",
        "no-enable-prefix-caching",
        "optimization-level",
        "hf-overrides",
        "json-arg.key1",
    }


def test_what_a_release_does_not_know_is_told_with_the_release() -> None:
    card, known = read_card(VLLM), options_in(HELP)
    refuse_unknown(card, ["max-logprobs", "hf-overrides.max_len", "no-enable-prefix-caching"], known)
    with pytest.raises(
        SpecError, match=r"engine_args\.max-logprob: vLLM 0\.9 has no argument --max-logprob"
    ) as near:
        refuse_unknown(card, ["max-logprob"], known, "0.9")
    assert near.value.fix == "did you mean 'max-logprobs'?"
    with pytest.raises(SpecError) as far:
        refuse_unknown(card, ["xyz"], known)
    assert far.value.fix == "remove it, or look at the help of vLLM"


def test_only_arguments_of_slipways_own_worker_cannot_choose_code() -> None:
    def held(kind: EngineKind) -> list[tuple[str, str]]:
        return [(one.key, one.value) for one in programs_of_arguments(kind, ["seed"], ["A"], "x.")]

    assert held(LLAMA_CPP) == [("x.engine_env", "A")]
    assert held(VLLM) == [("x.engine_args", "seed"), ("x.engine_env", "A")]
