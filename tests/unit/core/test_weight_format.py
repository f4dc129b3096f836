"""How a model says that it comes quantized: the sections of the tools that quantize, as they are published."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.compatibility.rules import load_tables
from tasks.compatibility.weights import find_type
from tasks.core.errors import ModelError
from tasks.core.weight_format import HF_QUANT_FILE, parse_weight_format, read_weight_format

BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
PER_TENSOR = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
MODELOPT = {"producer": {"name": "modelopt", "version": "0.31.0"}}


def compressed(form: str, *groups: dict[str, Any]) -> dict[str, Any]:
    named = {f"group_{number}": group for number, group in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": named}


def group(kind: str, bits: int, *, activations: bool = False, **weights: Any) -> dict[str, Any]:
    inputs = {"num_bits": bits, "type": kind} if activations else None
    return {"weights": {"num_bits": bits, "type": kind, **weights}, "input_activations": inputs}


@pytest.mark.parametrize(
    ("stored", "described"),
    [
        (BLOCKS, "fp8, blocks of 128x128, dynamic activations"),  # DeepSeek-V3, -R1, Qwen3-FP8, Kimi-K2
        (PER_TENSOR, "fp8, static activations"),  # Devstral 2
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8, fp8"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4"),  # gpt-oss
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq, 4 bits"),
        ({"quant_method": "awq", "w_bit": 4}, "awq, 4 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "gptq, 4 bits"),
        ({"quant_method": "gptq_marlin", "bits": 4}, "gptq, 4 bits"),
        ({"quant_method": "gptq", "bits": 3}, "gptq, 3 bits"),  # Genz-70b-GPTQ
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, bnb-nf4"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes, bnb-nf4, fp4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, bnb-int8"),
        (compressed("int-quantized", group("int", 8, activations=True)), "compressed-tensors, int8"),
        (compressed("int-quantized", group("int", 8)), "compressed-tensors, int-quantized"),
        (compressed("pack-quantized", group("int", 4)), "compressed-tensors, w4a16"),  # Kimi-K2.5
        (compressed("pack-quantized", group("int", 8)), "compressed-tensors, pack-quantized"),
        (compressed("pack-quantized"), "compressed-tensors, w4a16"),
        (compressed("float-quantized", group("float", 8, activations=True)), "compressed-tensors, fp8"),
        (compressed("float-quantized", group("float", 8, strategy="block")), "compressed-tensors, fp8-block"),
        (compressed("naive-quantized", group("float", 8)), "compressed-tensors, fp8"),
        (compressed("nvfp4-pack-quantized", group("float", 4)), "compressed-tensors, nvfp4"),
        (compressed("mxfp4-pack-quantized", group("float", 4)), "compressed-tensors, mxfp4"),  # Kimi-K3
        (
            compressed(
                "mixed-precision",
                {"format": "float-quantized", **group("float", 8)},
                {"format": "nvfp4-pack-quantized", **group("float", 4)},
            ),
            "compressed-tensors, float-quantized, nvfp4-pack-quantized",
        ),
        ({"quant_algo": "FP8", **MODELOPT}, "modelopt, fp8"),  # Qwen3-32B-FP8-Static-PerTensor
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt, nvfp4"),  # GLM-5.1-NVFP4
        # DeepSeek-V4-Flash-NVFP4 calls itself fp8, and its experts are NVFP4.
        ({**BLOCKS, "quant_algo": "MIXED_PRECISION", **MODELOPT}, "modelopt, MIXED_PRECISION"),
        ({"quant_method": "aqlm", "nbits_per_codebook": 16}, "aqlm"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
    ],
)
def test_a_section_says_method_and_type(stored: dict[str, Any], described: str) -> None:
    found = read_weight_format({"quantization_config": stored})
    assert found is not None
    assert found.describe() == described
    assert found.weight_type is None or find_type(found.weight_type, load_tables()) is not None
    nested = {"text_config": {"quantization_config": stored}}
    assert read_weight_format(nested) == found


def test_where_else_it_may_be_said() -> None:
    """Earlier compressed-tensors, MLX, and ModelOpt up to 0.29, which writes a file of its own."""
    old = read_weight_format(
        {"compression_config": compressed("int-quantized", group("int", 8, activations=True))}
    )
    assert old is not None
    assert old.weight_type == "int8"
    bits = {"bits": 4, "group_size": 64}
    for config in ({"quantization": bits}, {"quantization": bits, "quantization_config": bits}):
        mlx = read_weight_format(config)
        assert mlx is not None
        assert mlx.describe() == "mlx, 4 bits"
    beside = {**MODELOPT, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    alone = read_weight_format({}, beside)  # Llama-3.1-70B-Instruct-FP8
    assert alone is not None
    assert (alone.describe(), alone.found_in) == ("modelopt, fp8", HF_QUANT_FILE)
    both = read_weight_format(
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}, beside
    )
    assert both is not None
    assert both.found_in == "config.json"


def test_a_model_that_is_not_quantized() -> None:
    for config in ({}, {"quantization_config": None}, {"quantization_config": {}}, {"quantization": "none"}):
        assert read_weight_format(config) is None
    for keys_and_values_alone in ({}, {"quant_algo": None, "kv_cache_quant_algo": "FP8"}):
        assert read_weight_format({}, {"quantization": keys_and_values_alone}) is None
    assert parse_weight_format({}, b'{"quantization": {"quant_algo": "FP8"}}', "x") is not None
    for text in (b"{", b"[]", b"[" * 100_000):
        with pytest.raises(ModelError, match=r"m/hf_quant_config\.json is not a JSON object"):
            parse_weight_format({}, text, "m/hf_quant_config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["quant_method", "format", "config_groups", "bits", "quant_algo", "producer", "weight_block_size"]
        ),
        JSON | st.sampled_from(["fp8", "gptq", "modelopt", "compressed-tensors"]),
    )
)
def test_any_section_is_read(stored: dict[str, Any]) -> None:
    found = read_weight_format({"quantization_config": stored})
    assert (found is None) == (not stored)
    assert found is None or (found.describe().isprintable() and len(found.describe()) < 200)
