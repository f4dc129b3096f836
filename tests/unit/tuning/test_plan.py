"""What tuning measures and within which bounds, by the request, the host and the model."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tasks.core.errors import ModelError, SpecError
from tasks.core.facts import Gpu
from tasks.core.gpus import HostGpu
from tasks.core.model_shape import ModelShape, parse_model_shape
from tasks.core.model_task import GENERATES, Pooling, Purpose, Task
from tasks.core.serving import FITTED
from tasks.core.spec_kinds import CandidateFormat, EngineKind
from tasks.core.spec_sections import Hardware, Objectives, Serving, Tuning
from tasks.core.weight_format import WeightFormat
from tasks.quantization.models import BaselineModel, Candidate
from tasks.quantization.plan import refuse_memory
from tasks.quantization.sizes import Source, serving_bytes
from tasks.tuning import plan
from tasks.tuning.for_task import check_task
from tasks.tuning.models import TuningFacts, TuningRequest

GB = 10**9
LLAMA_CPP, VLLM, TRANSFORMERS = EngineKind.LLAMA_CPP, EngineKind.VLLM, EngineKind.TRANSFORMERS
CANDIDATE = Candidate(format=CandidateFormat.BF16, path=Path("/c/model"), digest="sha256:c", size_bytes=1)


def shape(heads: int = 8, kv_heads: int = 8) -> ModelShape:
    return ModelShape(
        architecture="LlamaForCausalLM",
        family="llama",
        layers=4,
        hidden=512,
        heads=heads,
        kv_heads=kv_heads,
        vocabulary=1000,
        max_context=4096,
    )


def facts(
    *gpu_gb: float | None, model: ModelShape | None = None, capability: str | None = "9.0"
) -> TuningFacts:
    """A host of 64.1 GB with these GPUs in use, numbered from the last one."""
    gpus = [
        HostGpu(
            len(gpu_gb) - 1 - index,
            Gpu(name="GPU", compute_capability=capability, memory_bytes=size and int(size * GB)),
        )
        for index, size in enumerate(gpu_gb)
    ]
    return TuningFacts(
        source=Source(model or shape(), {}, 0),
        family=None,
        gpus=tuple(gpus),
        host_bytes=64_100_000_000,
        cpus=16,
    )


def request(engine: EngineKind, gpus: int, **more: Any) -> TuningRequest:
    values: dict[str, Any] = {"hardware": Hardware(gpus=gpus), "tuning": Tuning(context=1024)} | more
    return TuningRequest(
        name="service",
        engine=engine,
        python_path=Path("/python"),
        environment_digest="sha256:e",
        model_dir=Path("/model"),
        model_digest="sha256:m",
        **values,
    )


def test_arguments_of_the_spec_are_measured_with_and_kept_with_the_measurements() -> None:
    def inputs(**own: Any) -> dict[str, Any]:
        asked, host = request(LLAMA_CPP, 0, **own), facts()
        batching = plan.batching_request(asked, host, CANDIDATE)
        config = plan.serving_config(asked, host)
        assert (config.engine_args, config.engine_env) == (asked.engine_args, asked.engine_env)
        assert batching.config == config
        quantization = plan.quantization_request(asked, host, {}, text=None, task_items=(), calibration=None)
        found = plan.batching_inputs(asked, CANDIDATE, batching)
        for key in ("engine_args", "engine_env"):
            assert found.get(key) == plan.quantization_inputs(asked, config, quantization).get(key)
        return found

    without = inputs()
    assert not {"engine_args", "engine_env"} & set(without), "records of before there were any still count"
    own = {"engine_args": {"seed": 1}, "engine_env": {"A": "1"}}
    assert inputs(**own) == {**without, **own}


def test_a_task_is_measured_for_and_kept_with_the_measurements() -> None:
    def inputs(purpose: Purpose) -> tuple[dict[str, Any], dict[str, Any]]:
        asked, host = request(LLAMA_CPP, 0), replace(facts(), purpose=purpose)
        batching = plan.batching_request(asked, host, CANDIDATE)
        config = plan.serving_config(asked, host)
        assert (config.task, config.pooling) == (purpose.task, purpose.pooling)
        quantization = plan.quantization_request(asked, host, {}, text=None, task_items=(), calibration=None)
        assert (batching.steps is None) is (purpose is not GENERATES), "a step holds whole texts"
        return (
            plan.batching_inputs(asked, CANDIDATE, batching),
            plan.quantization_inputs(asked, config, quantization),
        )

    for found in inputs(GENERATES):
        assert not {"task", "pooling"} & set(found), "records of before there were tasks still count"
    for pooling in (Pooling.MEAN, Pooling.CLS):
        for found in inputs(Purpose(Task.EMBED, "", pooling)):
            assert (found["task"], found["pooling"]) == ("embed", pooling)
    for found in inputs(Purpose(Task.RERANK, "")):
        assert (found["task"], found["pooling"]) == ("rerank", None)


EMBEDS = Purpose(Task.EMBED, "its files say so", Pooling.MEAN)


@pytest.mark.parametrize(
    ("engine", "purpose", "more", "version", "told"),
    [
        (TRANSFORMERS, EMBEDS, {}, None, "transformers does not serve models for embed"),
        (VLLM, EMBEDS, {}, "0.11.2", "with vllm from release 0.12 on, and engine_version is 0.11.2"),
        (LLAMA_CPP, EMBEDS, {"objectives": Objectives(ttft_ms=9)}, None, "objectives.ttft_ms is not for"),
        (LLAMA_CPP, EMBEDS, {"objectives": Objectives(tpot_ms=9)}, None, "objectives.tpot_ms is not for"),
        (
            LLAMA_CPP,
            GENERATES,
            {"objectives": Objectives(latency_ms=9)},
            None,
            "objectives.latency_ms is not",
        ),
        (LLAMA_CPP, EMBEDS, {"tuning": Tuning(load_generator="guidellm")}, None, "guidellm is not for"),
        (LLAMA_CPP, EMBEDS, {"serving": Serving(chat_template=Path("/t"))}, None, "serving.chat_template is"),
        (LLAMA_CPP, EMBEDS, {"serving": Serving(tool_parser="auto")}, None, "serving.tool_parser is"),
        (LLAMA_CPP, EMBEDS, {"serving": Serving(reasoning_parser="auto")}, None, "serving.reasoning_parser"),
        (
            LLAMA_CPP,
            EMBEDS,
            {"serving": Serving(structured_output="auto")},
            None,
            "serving.structured_output",
        ),
    ],
)
def test_what_a_task_has_no_use_for_is_told(
    engine: EngineKind, purpose: Purpose, more: dict[str, Any], version: str | None, told: str
) -> None:
    with pytest.raises(SpecError, match=told) as error:
        check_task(request(engine, 0, **more), purpose, version)
    assert error.value.fix


def test_a_model_for_embeddings_keeps_its_own_latency() -> None:
    asked = request(LLAMA_CPP, 0, objectives=Objectives(latency_ms=50))
    found = replace(facts(), purpose=EMBEDS)
    check_task(asked, EMBEDS)
    limits = plan.batching_request(asked, found, CANDIDATE).limits
    assert limits.latency_ms == {"latency_p95": 50}
    bert = shape().model_copy(update={"architecture": "BertModel", "family": "bert", "max_context": 512})
    fits = request(LLAMA_CPP, 0, tuning=Tuning(context=64, load={"prompt_tokens": 60}))
    plan.check_request(fits, Source(bert, {}, 0), EMBEDS)
    long = request(LLAMA_CPP, 0, tuning=Tuning(context=64, load={"prompt_tokens": 61}))
    with pytest.raises(SpecError, match="the 4 tokens around a text do not fit"):
        plan.check_request(long, Source(bert, {}, 0), EMBEDS)
    with pytest.raises(
        ModelError, match="cannot convert the architecture LlamaForCausalLM to GGUF for embed"
    ):
        plan.check_request(fits, facts().source, EMBEDS)


def test_tuning_refuses_what_slipway_sets() -> None:
    with pytest.raises(SpecError, match=r"engine_args\.threads: Slipway sets --threads of llama\.cpp itself"):
        plan.check_request(
            request(LLAMA_CPP, 0, engine_args={"threads": 9}, tuning=Tuning(candidates=("f16",))),
            facts().source,
        )


@dataclass(frozen=True)
class Case:
    """How an engine is to serve on these GPUs, and how much memory may be used (GB), with the reason."""

    engine: EngineKind
    gpus: tuple[float | None, ...]
    want: tuple[int, int, tuple[int, ...], float]
    """Layers on GPUs, GPUs that layers are split over, which of the host's they are, and the share of them."""
    usable: float
    why: str
    model: ModelShape = field(default_factory=shape)


CASES = [
    Case(LLAMA_CPP, (), (0, 0, (), 0.9), 57.5, "on the processor, of the host's memory in steps of 256 MiB"),
    Case(VLLM, (), (0, 0, (), 0.9), 57.5, "on the processor"),
    Case(LLAMA_CPP, (24,), (FITTED, 0, (0,), 0.89), 21.6, "llama.cpp fits its layers itself"),
    Case(LLAMA_CPP, (24, 8), (FITTED, 0, (1, 0), 0.89), 28.8, "and over all GPUs"),
    Case(LLAMA_CPP, (None,), (FITTED, 0, (0,), 0.89), 57.5, "a GPU without memory of its own: the host's"),
    Case(VLLM, (80,), (0, 1, (0,), 0.89), 72.0, "an engine uses a little more than its setting"),
    Case(VLLM, (80, 80, 80), (0, 2, (2, 1), 0.89), 144.0, "8 heads cannot be dealt out to 3 GPUs"),
    Case(VLLM, (80,) * 4, (0, 4, (3, 2, 1, 0), 0.89), 288.0, "2 key-value heads are copied", shape(8, 2)),
    Case(VLLM, (80,) * 3, (0, 1, (2,), 0.89), 72.0, "7 heads go to no number of GPUs", shape(7, 7)),
    Case(TRANSFORMERS, (80, 80, 80), (0, 3, (2, 1, 0), 0.89), 216.0, "it splits by layers, over any number"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.engine}: {case.why}")
def test_how_an_engine_serves_while_it_is_tuned(case: Case) -> None:
    asked, found = request(case.engine, len(case.gpus)), facts(*case.gpus, model=case.model)
    config = plan.serving_config(asked, found)
    assert (config.gpu_layers, config.gpus, config.gpu_indices, config.memory_fraction) == case.want
    assert (config.batch, config.context, config.threads) == (1, 1024, 16)
    limits = plan.batching_request(asked, found, CANDIDATE).limits
    assert limits.memory_bytes / GB == pytest.approx(case.usable, abs=0.1)


UNKNOWN = parse_model_shape(b'{"architectures": ["NovelForCausalLM"], "depth": 12}', "config.json")


def test_of_a_model_that_nobody_knows_the_engine_is_asked_and_no_prediction_is_made() -> None:
    asked = request(VLLM, 3, tuning=Tuning(context=1_000_000, candidates=(CandidateFormat.BF16,)))
    found = facts(80, 80, 80, model=UNKNOWN)
    plan.check_request(asked, found.source)
    config = plan.serving_config(asked, found)
    assert (config.gpus, config.kv_bytes_per_token) == (3, None)
    assert serving_bytes(GB, UNKNOWN, 1_000_000) == GB


def with_window(**more: Any) -> ModelShape:
    """Gemma 3 27B: 10 of 62 layers see all; each keeps 16 heads of 128."""
    sizes = {"num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128}
    windows = {"sliding_window": 1024, "sliding_window_pattern": 6, "max_position_embeddings": 131072}
    config = {"architectures": ["Gemma3ForCausalLM"], **sizes, **windows, **more}
    return parse_model_shape(json.dumps(config).encode(), "config.json")


def test_layers_with_a_window_keep_no_more_than_that() -> None:
    layer = 2 * 16 * 128 * 2
    needed = serving_bytes(28 * GB, with_window(), 131072)
    assert needed == 28 * GB + layer * (10 * 131072 + 52 * 1024)
    assert refuse_memory(needed, 72 * GB) is None
    assert serving_bytes(0, with_window(), 512) == layer * 62 * 512


def test_an_engine_that_must_be_told_reserves_for_layers_with_a_window_too() -> None:
    config = plan.serving_config(request(VLLM, 0), facts(model=with_window()))
    assert config.kv_bytes_per_token == 62 * 2 * 16 * 128 * 2
    hybrid = with_window(layer_types=["mamba"] * 61 + ["attention"])
    assert plan.serving_config(request(VLLM, 0), facts(model=hybrid)).kv_bytes_per_token is None


def test_a_context_that_yarn_lengthens_is_allowed() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    longer = with_window(max_position_embeddings=32768, rope_scaling=yarn)
    for context, allowed in ((131072, True), (131073, False)):
        asked = request(VLLM, 1, tuning=Tuning(context=context, candidates=(CandidateFormat.BF16,)))
        with nullcontext() if allowed else pytest.raises(SpecError, match="supports at most 131072 tokens"):
            plan.check_request(asked, facts(80, model=longer).source)


def test_what_a_model_may_take_is_gpus_and_host_where_layers_are_offloaded() -> None:
    found = facts(24)
    for engine, most in ((LLAMA_CPP, 21.6 + 57.5), (VLLM, 21.6)):
        asked = request(engine, 1)
        formats = plan.quantization_request(asked, found, {}, text=None, task_items=(), calibration=None)
        assert (formats.memory_bytes or 0) / GB == pytest.approx(most, abs=0.1)


def test_steps_are_searched_where_the_engine_has_a_choice_of_them() -> None:
    defaults: dict[str, list[int | None]] = {}
    for engine in (LLAMA_CPP, VLLM, TRANSFORMERS):
        for gpus in ((), (24,), (80,)):
            steps = plan.batching_request(request(engine, len(gpus)), facts(*gpus), CANDIDATE).steps
            defaults.setdefault(engine, []).append(steps and steps.batched_tokens.default)
    assert defaults == {
        "llama.cpp": [2048, 2048, 2048],
        "vllm": [2048, 2048, 8192],
        "transformers": [None, None, None],
    }


def test_the_longest_request_has_the_prompt_and_the_longest_answer() -> None:
    tuning = Tuning(context=1024, output_tokens=100, load={"prompt_tokens": 600})
    limits = plan.batching_request(request(VLLM, 1, tuning=tuning), facts(80), CANDIDATE).limits
    assert limits.request_tokens is not None
    assert 700 < limits.request_tokens <= 1024


@pytest.mark.parametrize(
    ("capability", "gpus", "why"),
    [
        ("9.0", 0, "not made: vllm computes in fp8 from compute capability 8.9 on, and no GPU is used (hardware.gpus)"),
        ("9.0", 1, None),
        ("8.0", 1, "not made: vllm computes in fp8 from compute capability 8.9 on, a GPU in use has 8.0"),
        (None, 1, "not made: vllm computes in fp8 from compute capability 8.9 on, but the compute capability of a GPU in use is not known"),
    ],
)  # fmt: skip
def test_the_gpus_in_use_decide_which_formats_are_made(
    capability: str | None, gpus: int, why: str | None
) -> None:
    fp8 = CandidateFormat.FP8
    tuning = Tuning(candidates=(CandidateFormat.BF16, fp8), quality_text=Path("/t"))
    found = facts(*[80] * gpus, capability=capability)
    assert plan.refused_formats(request(VLLM, gpus, tuning=tuning), found).get(fp8) == why


def test_a_search_within_little_memory_still_asks_for_some() -> None:
    little = request(VLLM, 1, objectives=Objectives(memory_fraction=0.01))
    assert plan.serving_config(little, facts(80)).memory_fraction == 0.01


def of_gguf(**tuning: Any) -> tuple[TuningRequest, TuningFacts]:
    source = Source(shape(), {}, 0, as_is=("m.gguf",), as_is_bytes=GB, stored_as="q4_k_m")
    known = facts()
    return request(LLAMA_CPP, 0, tuning=Tuning(**tuning)), replace(known, source=source)


def test_a_gguf_model_is_its_only_candidate() -> None:
    asked, known = of_gguf()
    plan.check_request(asked, known.source)
    made = plan.quantization_request(asked, known, {}, text=None, task_items=(), calibration=None)
    assert (made.formats, made.as_is, made.stored_as) == ((CandidateFormat.AS_IS,), ("m.gguf",), "q4_k_m")


def test_a_quantized_model_is_its_only_candidate_where_the_engine_serves_it() -> None:
    weights = WeightFormat(method="fp8", weight_type="fp8-block")
    files = ("config.json", "model.safetensors")
    source = Source(shape(), {}, 0, as_is=files, as_is_bytes=GB, stored_as="fp8", weights=weights)
    for tuning in (Tuning(), Tuning(candidates=(CandidateFormat.AS_IS,))):
        asked, known = request(VLLM, 1, tuning=tuning), replace(facts(80), source=source)
        plan.check_request(asked, source, capabilities=["9.0"])
        made = plan.quantization_request(asked, known, {}, text=None, task_items=(), calibration=None)
        assert (made.formats, made.as_is, made.stored_as) == ((CandidateFormat.AS_IS,), files, "fp8")
        assert not plan.needs_quantizer(asked, {})
    with pytest.raises(ModelError, match="which vllm serves on GPUs only"):
        plan.check_request(request(VLLM, 0), source)
    with pytest.raises(ModelError, match="cannot be converted to GGUF"):
        plan.check_request(request(LLAMA_CPP, 0), source)


def test_code_that_may_be_run_is_part_of_what_is_served_and_measured() -> None:
    asked, known = request(TRANSFORMERS, 0), facts()
    code = {"modeling_own.py": "sha256:1"}
    config, own = (plan.serving_config(asked, one) for one in (known, replace(known, remote_code=code)))
    assert (config.remote_code, own.remote_code) == ({}, code)
    made = plan.quantization_request(asked, known, {}, text=None, task_items=(), calibration=None)
    assert plan.quantization_inputs(asked, own, made)["remote_code"] == code
    assert "remote_code" not in plan.quantization_inputs(asked, config, made)
    batching = plan.batching_request(asked, replace(known, remote_code=code), CANDIDATE)
    assert plan.batching_inputs(asked, CANDIDATE, batching)["remote_code"] == code


def test_a_baseline_may_bring_only_the_code_that_is_trusted() -> None:
    code = {"modeling_own.py": "sha256:1"}
    for model, baseline in (({}, {}), ({}, code), (code, {}), (code, code)):
        plan.check_same_code(model, baseline)
    for other in ({"modeling_own.py": "sha256:2"}, {**code, "more.py": "sha256:3"}):
        with pytest.raises(SpecError, match=r"tuning.baseline brings other code than the model: "):
            plan.check_same_code(code, other)


def test_a_baseline_is_for_a_model_as_it_is() -> None:
    tuning = Tuning(baseline="file:/whole", quality_text=Path("/t"))
    with pytest.raises(SpecError, match=r"tuning.baseline is for a model that is served as it comes"):
        plan.check_request(request(TRANSFORMERS, 0, tuning=tuning), facts().source)
    weights = WeightFormat(method="fp8", weight_type="fp8-block")
    source = Source(shape(), {}, 0, as_is=("config.json",), as_is_bytes=GB, stored_as="fp8", weights=weights)
    baseline = BaselineModel(
        model_dir=Path("/whole"),
        model_digest="sha256:w",
        files=("config.json",),
        format=CandidateFormat.BF16,
        size_bytes=2 * GB,
    )
    asked, known = request(TRANSFORMERS, 0, tuning=tuning), replace(facts(), source=source)
    plan.check_request(asked, source)
    alone = plan.quantization_request(asked, known, {}, text="t", task_items=(), calibration=None)
    both = plan.quantization_request(
        asked, replace(known, baseline=baseline), {}, text="t", task_items=(), calibration=None
    )
    assert (alone.formats, both.formats) == (
        (CandidateFormat.AS_IS,),
        (CandidateFormat.BF16, CandidateFormat.AS_IS),
    )
    config = plan.serving_config(asked, known)
    inputs = plan.quantization_inputs(asked, config, both)
    assert inputs["baseline_digest"] == "sha256:w"
    assert "baseline_digest" not in plan.quantization_inputs(asked, config, alone)
    assert "/whole" not in str(inputs)
    plan.check_same_model(shape(), shape(kv_heads=4))
    with pytest.raises(SpecError, match=r"tuning.baseline is another model: heads 4, not 8"):
        plan.check_same_model(shape(), shape(heads=4))


def test_records_of_models_in_safetensors_keep_their_inputs() -> None:
    asked, known = request(LLAMA_CPP, 0), facts()
    config = plan.serving_config(asked, known)
    made = plan.quantization_request(asked, known, {}, text=None, task_items=(), calibration=None)
    assert not {"as_is", "stored_as"} & plan.quantization_inputs(asked, config, made).keys()
    gguf, of_it = of_gguf()
    own = plan.quantization_request(gguf, of_it, {}, text=None, task_items=(), calibration=None)
    assert plan.quantization_inputs(gguf, config, own)["stored_as"] == "q4_k_m"


@pytest.mark.parametrize(
    ("tuning", "why"),
    [
        ({"candidates": ("q8_0",)}, "from which q8_0 cannot be made"),
        ({"context": 8192}, "supports at most 4096 tokens"),
        ({"load_generator": "guidellm"}, "guidellm needs the model's tokenizer.json"),
    ],
)
def test_what_a_gguf_model_cannot_be_asked_for(tuning: dict[str, Any], why: str) -> None:
    asked, known = of_gguf(**tuning)
    with pytest.raises(SpecError, match=why):
        plan.check_request(asked, known.source)


def test_safetensors_cannot_be_asked_for_as_they_are() -> None:
    asked = request(LLAMA_CPP, 0, tuning=Tuning(candidates=(CandidateFormat.AS_IS,)))
    with pytest.raises(SpecError, match="as-is is for models that come quantized or as GGUF"):
        plan.check_request(asked, facts().source)
