"""Converted models compute what the architecture says: the served engine against a forward pass in numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline_snapshot import snapshot
from random_model import (
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    read_floats,
    rewrite_model,
    write_random_model,
)
from reference_model import ReferenceModel

from blocks.candidates.candidate_worker import make_gguf
from blocks.candidates.llama_cpp_scores import score_windows
from blocks.engine.api import EngineApi
from blocks.engine.process import serve
from blocks.engine.tokens import llama_cpp_tokens
from blocks.storage.model_source import FolderSource
from tasks.core.errors import CommandError, DiskFullError, ModelError
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import CandidateFormat
from tasks.engines.llama_cpp import LlamaCpp
from tasks.quantization.models import Score
from tasks.quantization.recipe import RECIPES
from tasks.staging.apply import plan_copy
from tasks.staging.source import pin

pytestmark = pytest.mark.engine

TEXT = "The pilot reads the tide; 42 barges wait, and the harbour is closed at night. Light shows green!\n"
Make = Callable[[Path], Path]


def random_norms(folder: Path, random: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
    """Norm weights that differ, so that two which are mixed up show."""
    names = [name for name in read_floats(folder / "model.safetensors") if "norm" in name]
    tensors = read_floats(folder / "model.safetensors")
    return {name: random.uniform(0.5, 1.5, tensors[name].shape).astype(np.float32) for name in names}


def qwen3(folder: Path) -> Path:
    write_random_model(folder, family="qwen3")
    return rewrite_model(folder, tensors=random_norms(folder, np.random.default_rng(1)))


def llama(folder: Path) -> Path:
    write_random_model(folder, family="llama")
    return rewrite_model(folder, tensors=random_norms(folder, np.random.default_rng(2)))


def llama_in_shards(folder: Path) -> Path:
    return write_random_model(folder, family="llama", shards=3)


def llama_untied_with_biases(folder: Path) -> Path:
    llama(folder)
    random = np.random.default_rng(3)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    sizes = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM, "o": HIDDEN}
    added: dict[str, np.ndarray[Any, Any] | None] = {
        f"model.layers.{layer}.self_attn.{letter}_proj.bias": random.normal(0, 0.3, size)
        for layer in range(LAYERS)
        for letter, size in sizes.items()
    }
    added["lm_head.weight"] = random.normal(0, 0.1, (vocabulary, HIDDEN))
    return rewrite_model(
        folder, dtype="F16", config={"tie_word_embeddings": False, "attention_bias": True}, tensors=added
    )


def llama3_rope(folder: Path) -> Path:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 64
    return rewrite_model(llama(folder), dtype="F32", config={"rope_scaling": scaling, "rope_theta": 500.0})


def qwen3_linear_rope(folder: Path) -> Path:
    return rewrite_model(qwen3(folder), config={"rope_scaling": {"rope_type": "linear", "factor": 4.0}})


def yarn(folder: Path, **more: float) -> Path:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, **more}
    return rewrite_model(qwen3(folder), config={"rope_scaling": scaling})


def yarn_with_factor(folder: Path) -> Path:
    """As DeepSeek-R1-0528-Qwen3-8B: the factor takes back what YaRN multiplies by."""
    return yarn(folder, attn_factor=1 / (1 + 0.1 * math.log(4)))


def yarn_of_its_own(folder: Path) -> Path:
    return yarn(folder, beta_fast=32.0, beta_slow=1.0, attention_factor=0.7)


def yarn_with_scales(folder: Path) -> Path:
    return yarn(folder, mscale=3.0, mscale_all_dim=0.5)


MODELS = [
    yarn,
    yarn_with_factor,
    yarn_of_its_own,
    yarn_with_scales,
    qwen3,
    llama,
    llama_in_shards,
    llama_untied_with_biases,
    llama3_rope,
    qwen3_linear_rope,
]


def served_scores(python: Path, model: Path, form: CandidateFormat, text: str) -> list[Score]:
    """Convert, serve, and score the text as one window."""
    out = model / f"{form}.gguf"
    make_gguf(python, RECIPES["gguf-file"].worker, model, form, out)
    engine = LlamaCpp()
    config = ServingConfig(served_name="test", batch=2, context=256, threads=1)
    command = engine.command(str(python), str(engine.server_worker), str(out), config)
    with (
        serve(command, served_name="test", log=model / "log") as served,
        EngineApi(served.base_url) as api,
    ):
        return score_windows(api, [llama_cpp_tokens(api, text)], slots=2)


def reference(model: Path, text: str) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Token ids of ASCII text in the byte-level vocabulary, and log-probabilities after each."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    letters = text.replace(" ", "Ġ").replace("\n", "Ċ")
    tokens = [vocabulary[letter] for letter in letters]
    return tokens, ReferenceModel(model).log_probabilities(tokens)


@pytest.mark.parametrize("write", MODELS, ids=lambda write: write.__name__)
def test_the_served_model_computes_what_the_architecture_says(
    write: Make, tmp_path: Path, engine_python: Path
) -> None:
    model = write(tmp_path / "model")
    plan(model)
    scores = served_scores(engine_python, model, CandidateFormat.F32, TEXT)
    tokens, expected = reference(model, TEXT)
    assert [score.token for score in scores] == tokens[1:]
    found = np.array([score.logprob for score in scores])
    wanted = expected[np.arange(len(tokens) - 1), tokens[1:]]
    # The engine keeps keys and values in 16 bits; a wrong rotation or a swapped tensor is off by 0.1 and more.
    assert np.abs(found - wanted).max() < 0.01
    assert np.exp(-found.mean()) == pytest.approx(np.exp(-wanted.mean()), rel=1e-3)
    best = expected[:-1].max(-1)
    chosen = expected[np.arange(len(tokens) - 1), [score.top for score in scores]]
    assert (best - chosen).max() < 0.01  # the same token is the likeliest, or one as likely


def test_wrong_rotation_would_show(tmp_path: Path) -> None:
    """What the tolerance above is worth: without the right scaling the same model is far off."""
    model = llama3_rope(tmp_path / "model")
    tokens, right = reference(model, TEXT)
    rewrite_model(model, dtype="F32", config={"rope_scaling": None})
    _, wrong = reference(model, TEXT)
    rows = np.arange(len(tokens) - 1)
    assert np.abs(right[rows, tokens[1:]] - wrong[rows, tokens[1:]]).max() > 0.1


@pytest.mark.parametrize(("form", "bound"), [("f16", 0.01), ("q8_0", 0.1), ("q4_0", 1.5)])
def test_quantized_models_stay_near_their_source(
    form: str, bound: float, tmp_path: Path, engine_python: Path
) -> None:
    model = llama(tmp_path / "model")
    exact = served_scores(engine_python, model, CandidateFormat.F32, TEXT)
    rough = served_scores(engine_python, model, CandidateFormat(form), TEXT)
    difference = max(abs(a.logprob - b.logprob) for a, b in zip(exact, rough, strict=True))
    assert 0 < difference < bound
    assert (model / f"{form}.gguf").stat().st_size < (model / "f32.gguf").stat().st_size * 0.55


def test_rows_that_do_not_divide_into_blocks_stay_in_16_bits(tmp_path: Path, engine_python: Path) -> None:
    model = qwen3(tmp_path / "model")
    ragged = FFN - 16
    tensors = read_floats(model / "model.safetensors")
    cut: dict[str, np.ndarray[Any, Any] | None] = {}
    for name, values in tensors.items():
        if "gate_proj" in name or "up_proj" in name:
            cut[name] = values[:ragged]
        if "down_proj" in name:
            cut[name] = values[:, :ragged]
    rewrite_model(model, config={"intermediate_size": ragged}, tensors=cut)
    exact = served_scores(engine_python, model, CandidateFormat.F32, TEXT)
    rough = served_scores(engine_python, model, CandidateFormat.Q8_0, TEXT)
    assert max(abs(a.logprob - b.logprob) for a, b in zip(exact, rough, strict=True)) < 0.2


def test_parts_of_characters_are_context_and_not_scored(tmp_path: Path, engine_python: Path) -> None:
    model = qwen3(tmp_path / "model")
    text = "café is open, naïve façade"
    scores = served_scores(engine_python, model, CandidateFormat.F32, text)
    raw = text.encode()
    assert [score.token for score in scores] == [
        byte for byte in byte_tokens(model, raw)[1:] if byte is not None
    ]


def byte_tokens(model: Path, raw: bytes) -> list[int | None]:
    """Ids of bytes; None for bytes that are parts of a character."""
    vocabulary = list(json.loads((model / "tokenizer.json").read_text())["model"]["vocab"].values())
    return [vocabulary[byte] if byte < 128 else None for byte in raw]


def unknown_tensor(model: Path) -> None:
    rewrite_model(model, tensors={"model.layers.0.mlp.experts.0.w1": np.ones((2, 2))})


def missing_tensor(model: Path) -> None:
    rewrite_model(model, tensors={"model.layers.1.mlp.up_proj.weight": None})


def missing_head(model: Path) -> None:
    rewrite_model(model, config={"tie_word_embeddings": False})


def wrong_shape(model: Path) -> None:
    rewrite_model(model, tensors={"model.norm.weight": np.ones(7)})


def not_a_number(model: Path) -> None:
    rewrite_model(model, tensors={"model.norm.weight": np.full(HIDDEN, np.nan)})


def beyond_16_bits(model: Path) -> None:
    values = read_floats(model / "model.safetensors")["model.embed_tokens.weight"].copy()
    values[0, 0] = 1e6
    rewrite_model(model, dtype="F32", tensors={"model.embed_tokens.weight": values})


def other_architecture(model: Path) -> None:
    rewrite_model(model, config={"architectures": ["MixtralForCausalLM"]})


def quantized_source(model: Path) -> None:
    rewrite_model(model, config={"quantization_config": {"quant_method": "fp8"}})


def other_rope(model: Path) -> None:
    rewrite_model(model, config={"rope_scaling": {"rope_type": "longrope", "factor": 2}})


def biases_in_qwen3(model: Path) -> None:
    rewrite_model(model, config={"attention_bias": True})


def no_heads(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["num_attention_heads"]
    (model / "config.json").write_text(json.dumps(config))


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def cut_short(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def bad_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 64)


def outside_the_folder(model: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def other_betas(model: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 8}
    rewrite_model(model, config={"rope_scaling": scaling})


def change_tokenizer(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer))


def unigram(model: Path) -> None:
    change_tokenizer(model, lambda found: found["model"].update(type="Unigram"))


def lower_case(model: Path) -> None:
    change_tokenizer(model, lambda found: found.update(normalizer={"type": "Lowercase"}))


def space_before(model: Path) -> None:
    change_tokenizer(model, lambda found: found["pre_tokenizer"].update(add_prefix_space=True))


def unknown_split(model: Path) -> None:
    steps = [{"type": "Split", "pattern": {"Regex": "x+"}}, {"type": "ByteLevel", "use_regex": False}]
    change_tokenizer(
        model, lambda found: found.update(pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    )


def more_tokens_than_rows(model: Path) -> None:
    change_tokenizer(model, lambda found: found["model"]["vocab"].update({"zz": 5000}))


def no_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


def refusal(python: Path, model: Path, form: str = "f16") -> str:
    out = model / "out.gguf"
    with pytest.raises(ModelError) as caught:
        make_gguf(python, RECIPES["gguf-file"].worker, model, CandidateFormat(form), out)
    return str(caught.value).replace(str(model), "MODEL").removeprefix("MODEL cannot be converted to f16: ")


REFUSED = [
    unknown_tensor, missing_tensor, missing_head, wrong_shape, not_a_number, beyond_16_bits, other_architecture,
    quantized_source, other_rope, other_betas, biases_in_qwen3, no_heads, no_weights, cut_short, bad_header, outside_the_folder,
    unigram, lower_case, space_before, unknown_split, more_tokens_than_rows, no_tokenizer,
]  # fmt: skip


def plan(model: Path) -> None:
    """What staging says of a model before it is copied, by its headers and configuration."""
    plan_copy(pin(FolderSource(model)), "auto", convertible=True)


def test_what_cannot_be_converted_is_refused_in_one_line(tmp_path: Path, engine_python: Path) -> None:
    answers = {}
    for number, damage in enumerate(REFUSED):
        model = write_random_model(tmp_path / str(number))
        damage(model)
        answers[damage.__name__] = refusal(engine_python, model)
        if damage not in (not_a_number, beyond_16_bits):  # seen when the values are read
            with pytest.raises(ModelError):
                plan(model)
    assert answers == snapshot(
        {
            "unknown_tensor": (
                "the tensor model.layers.0.mlp.experts.0.w1 is not part of a qwen3 model (check "
                "`architectures` in config.json)"
            ),
            "missing_tensor": "the tensor model.layers.1.mlp.up_proj.weight is missing (stage the model again)",
            "missing_head": "the tensor lm_head.weight is missing (stage the model again)",
            "wrong_shape": (
                "the tensor model.norm.weight has the shape (7,), config.json says (128,) (take config.json "
                "and weights from the same model)"
            ),
            "not_a_number": (
                "the tensor output_norm.weight contains values that are not numbers (stage the model again)"
            ),
            "beyond_16_bits": (
                "the tensor token_embd.weight contains values beyond 16-bit floats (use the format f32)"
            ),
            "other_architecture": (
                "the architecture MixtralForCausalLM cannot be converted (use one of LlamaForCausalLM, "
                "Qwen3ForCausalLM)"
            ),
            "quantized_source": (
                'config.json: quantization_config = {"quant_method": "fp8"} cannot be converted (use an '
                "unquantized Llama or Qwen3)"
            ),
            "other_rope": "config.json: rope scaling longrope cannot be converted (use linear, yarn or llama3)",
            "other_betas": (
                "config.json: rope scaling yarn with beta_fast = 8 cannot be converted (use a model with 32, "
                "or an engine that loads folders)"
            ),
            "biases_in_qwen3": "a qwen3 model with biases cannot be converted (use a model without biases)",
            "no_heads": "config.json lacks 'num_attention_heads' (take the whole model folder)",
            "no_weights": "MODEL contains no safetensors file (stage a model in the safetensors format)",
            "cut_short": "model.safetensors is damaged or cut short (stage the model again)",
            "bad_header": "model.safetensors is damaged or cut short (stage the model again)",
            "outside_the_folder": (
                "model.safetensors.index.json names the file '../model.safetensors' outside its folder "
                "(stage the model again)"
            ),
            "unigram": (
                "the tokenizer kind Unigram is not a byte-level BPE (use a byte-level BPE tokenizer cut "
                "like GPT-2, Llama 3 or Qwen)"
            ),
            "lower_case": (
                "the tokenizer's normalizer Lowercase cannot be converted (use a byte-level BPE tokenizer "
                "cut like GPT-2, Llama 3 or Qwen)"
            ),
            "space_before": (
                "the tokenizer adds a space before the text (use a byte-level BPE tokenizer cut like GPT-2, "
                "Llama 3 or Qwen)"
            ),
            "unknown_split": (
                'the pre-tokenizer {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": '
                '{"Regex": "x+"}}, {"type": "ByteLevel", "use_regex": is not known (use a byte-level BPE '
                "tokenizer cut like GPT-2, Llama 3 or Qwen)"
            ),
            "more_tokens_than_rows": (
                "the tokenizer has 5001 tokens, the model 257 (take tokenizer.json and weights from the "
                "same model)"
            ),
            "no_tokenizer": "tokenizer.json is missing or not JSON (take the whole model folder)",
        }
    )


def full_tokenizer(model: Path) -> None:
    """What larger models bring: merges as pairs, a beginning of text, padding rows, a chat template."""

    def change(found: dict[str, Any]) -> None:
        found["model"]["merges"] = [["t", "h"], ["th", "e"]]
        found["model"]["vocab"] |= {"th": 257, "the": 258}
        step = [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ]
        found["post_processor"] = {"type": "TemplateProcessing", "single": step}

    change_tokenizer(model, change)
    settings = {"bos_token": {"content": "<|endoftext|>"}, "chat_template": "{{ messages[0].content }}"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    embeddings = read_floats(model / "model.safetensors")["model.embed_tokens.weight"]
    rewrite_model(
        model,
        config={"vocab_size": 320, "eos_token_id": [256, 1]},
        tensors={"model.embed_tokens.weight": np.vstack([embeddings, np.zeros((320 - 257, HIDDEN))])},
    )


def test_a_beginning_of_text_comes_before_every_window(tmp_path: Path, engine_python: Path) -> None:
    model = write_random_model(tmp_path / "model")
    full_tokenizer(model)
    scores = served_scores(engine_python, model, CandidateFormat.F32, "the ship")
    assert [score.token for score in scores][:1] == [
        258
    ]  # merged, and scored: the beginning of text is its context
    expected = ReferenceModel(model).log_probabilities([256])
    assert scores[0].logprob == pytest.approx(expected[0, 258], abs=0.01)


def test_a_full_disk_is_named(tmp_path: Path, engine_python: Path, small_disk: Path) -> None:
    model = write_random_model(tmp_path / "model")
    with pytest.raises(DiskFullError, match="no space left to write"):
        make_gguf(
            engine_python, RECIPES["gguf-file"].worker, model, CandidateFormat.F32, small_disk / "out.gguf"
        )


def test_a_converter_that_breaks_is_a_fault(tmp_path: Path, engine_python: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import sys; print('oh no', file=sys.stderr); sys.exit(7)")
    with pytest.raises(CommandError, match="exit status 7") as caught:
        make_gguf(engine_python, worker, tmp_path, CandidateFormat.F16, tmp_path / "out.gguf")
    assert caught.value.detail == "oh no"
