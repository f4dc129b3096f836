"""What is missing is told from what is not meant to be there: kinds of layers, as real models have them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tasks.staging.completeness import has_layers, missing_tensors

ATTENTION = ("norm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
DENSE = (*ATTENTION, "mlp.up_proj")
EXPERTS = (*ATTENTION, *(f"mlp.experts.{number}.up_proj" for number in range(3)))
LINEAR = ("norm", "linear_attn.in_proj")
NEXT = (*EXPERTS, "eh_proj", "shared_head.norm")
ENDS = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


@dataclass(frozen=True)
class Model:
    """Layers by their modules, from the first; the configuration; and what is missing."""

    layers: tuple[tuple[str, ...], ...]
    config: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    stack: str = "model.layers"
    ends: tuple[str, ...] = ENDS
    more: tuple[str, ...] = ()
    architecture: str = "SomeForCausalLM"


def lacking(modules: tuple[str, ...], *gone: str) -> tuple[str, ...]:
    return tuple(one for one in modules if one not in gone)


KINDS = {"layer_types": ["full", "sliding", "full", "sliding"]}
SHARED = lacking(DENSE, "self_attn.v_proj")
MODELS = {
    "all the same": Model((DENSE,) * 4),
    "dense layers, then experts (DeepSeek V3)": Model((DENSE, EXPERTS, EXPERTS, EXPERTS)),
    "a layer for multi-token prediction (DeepSeek V3)": Model(
        (DENSE, EXPERTS, EXPERTS, NEXT), {"num_hidden_layers": 3}
    ),
    "two kinds by a list (Qwen3-Next, Jamba)": Model((LINEAR, DENSE, LINEAR, DENSE), {"layer_types": [1, 2, 1, 2]}),
    "global layers without values (Gemma 4)": Model(
        (SHARED, DENSE, DENSE, DENSE), {"layer_types": ["full", "sliding", "sliding", "sliding"]}
    ),
    "kinds by a text (Nemotron-H)": Model((DENSE, SHARED, DENSE, DENSE), {"hybrid_override_pattern": "M*MM"}),
    "kinds by their numbers (Bamba)": Model((DENSE, SHARED, DENSE, DENSE), {"attn_layer_indices": [1]}),
    "kinds in a nested part": Model((DENSE, SHARED, DENSE, DENSE), {"parts": {"types": [0, 1, 0, 0]}}),
    "each layer of its own (Nemotron NAS)": Model(
        (DENSE, SHARED, DENSE, DENSE), {"block_configs": [{"a": 1}, {"a": 1}, {"a": 1}, {"a": 1}]}
    ),
    "values of another layer (Gemma 3n)": Model((DENSE, DENSE, SHARED, SHARED)),
    "a first layer without a norm (ModernBERT)": Model((lacking(DENSE, "norm"), DENSE, DENSE)),
    "GPT-2's names": Model((DENSE,) * 2, {"n_layer": 2}, stack="transformer.h", ends=("wte.weight", "ln_f.weight")),
    "a vision tower with fewer layers": Model(
        (DENSE,) * 3, more=tuple(f"vision_tower.layers.{number}.a.weight" for number in range(9))
    ),
    "BERT's names": Model(
        (DENSE,) * 2, stack="encoder.layer", ends=("embeddings.word_embeddings.weight",), architecture="BertModel"
    ),
    "two stacks that are counted together (T5)": Model(
        (DENSE,) * 2,
        {"num_layers": 4},
        stack="encoder.block",
        ends=("shared.weight",),
        more=tuple(f"decoder.block.{number}.a.weight" for number in range(2)),
    ),
    "no count": Model((DENSE,), {"num_hidden_layers": None}),
    "a hostile count": Model((DENSE,), {"num_hidden_layers": 1 << 40}),
    "no numbers": Model((), stack="first"),
    "some layers not quantized": Model(
        (DENSE,) * 4,
        more=tuple(
            f"model.layers.{number}.self_attn.q_proj.{what}" for number in (1, 2) for what in ("weight_scale", "bias")
        ),
    ),
    "one layer lacks a module": Model(
        (DENSE, SHARED, DENSE, DENSE), missing=("model.layers.1.self_attn.v_proj",)
    ),
    "one layer of its kind lacks a module": Model(
        (LINEAR, SHARED, LINEAR, DENSE, LINEAR, DENSE),
        {"layer_types": [1, 2, 1, 2, 1, 2]},
        missing=("model.layers.1.self_attn.v_proj",),
    ),
    "one layer lacks an expert": Model(
        (DENSE, EXPERTS, lacking(EXPERTS, "mlp.experts.1.up_proj"), EXPERTS),
        missing=("model.layers.2.mlp.experts.1.up_proj",),
    ),
    "a layer in the middle": Model(
        (DENSE, (), DENSE), missing=("model.layers.1",), config={"num_hidden_layers": 3}
    ),
    "the last layers": Model(
        (DENSE,) * 2, {"num_hidden_layers": 4}, missing=("model.layers.2", "model.layers.3")
    ),
    "only the layers": Model(
        (DENSE,) * 2,
        {"rms_norm_eps": 1e-6, "tie_word_embeddings": False},
        ends=(),
        missing=("the embeddings", "the last norm", "lm_head.weight"),
    ),
    "a text model in a wrapper": Model(
        (DENSE,) * 2,
        {"text_config": {"num_hidden_layers": 3, "tie_word_embeddings": False}},
        stack="language_model.model.layers",
        ends=ENDS[:2],
        missing=("language_model.model.layers.2", "lm_head.weight"),
        architecture="SomeForConditionalGeneration",
    ),
}  # fmt: skip


def names_of(model: Model) -> list[str]:
    layers = [
        f"{model.stack}.{number}.{module}.weight"
        for number, modules in enumerate(model.layers)
        for module in modules
    ]
    return [*model.ends, *layers, *model.more]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_what_a_model_lacks_is_named_and_nothing_else(model: Model) -> None:
    config = {
        "architectures": [model.architecture],
        "num_hidden_layers": len(model.layers),
        "tie_word_embeddings": None,
        **model.config,
    }
    if {"n_layer", "num_layers"} & model.config.keys():
        config.pop("num_hidden_layers")
    assert missing_tensors(config, names_of(model)) == model.missing


@pytest.mark.parametrize(
    "config",
    [{}, {"architectures": "x"}, {"architectures": [None], "num_hidden_layers": "3"}, {"text_config": []}],
)
def test_an_odd_configuration_proves_nothing(config: dict[str, Any]) -> None:
    assert missing_tensors(config, names_of(MODELS["all the same"])) == ()


def test_names_that_are_not_known_are_told_apart() -> None:
    assert has_layers(names_of(MODELS["BERT's names"]))
    assert not has_layers(["a.weight", "layers.weight", "layers.x.weight", "visual.layers.0.weight"])
