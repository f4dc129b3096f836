"""What model families need, and what is found where they do not get it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from tasks.compatibility.rules import load_tables
from tasks.core.errors import ModelError
from tasks.core.model_shape import shape_of
from tasks.engines.families import (
    Family,
    check_flags,
    config_at,
    config_findings,
    dtype_finding,
    families,
    family_in,
    family_of,
    find_family,
    flag_findings,
    host_findings,
    served_as,
    serving_dtype,
    shape_findings,
)


def family(name: str) -> Family:
    found = find_family(name)
    assert found is not None
    return found


def test_families_are_sorted_sourced_and_name_rules_that_exist() -> None:
    names = [one.name for one in families()]
    assert names == sorted(set(names))
    rules = {rule.id for rule in load_tables().rules}
    for one in families():
        assert one.sources
        assert {rule for rule in (one.dtype_rule, one.capability_rule) if rule} <= rules
    architectures = [name for one in families() for name in one.architectures]
    assert len(architectures) == len(set(architectures))


def test_a_model_says_its_family_by_its_config(tmp_path: Path) -> None:
    assert family_of({"architectures": ["DeepseekV3ForCausalLM"]}) == find_family("deepseek-v3")
    assert family_of({"architectures": "Qwen3ForCausalLM"}) is None
    assert family_of({}) is None
    assert family_of(config_at("s3://bucket/model")) is None
    assert family_of(config_at(f"file:{tmp_path}")) is None
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Gemma3ForCausalLM"]}))
    assert family_of(config_at(f"file:{tmp_path}")) == find_family("gemma")
    (tmp_path / "config.json").write_text("[")
    assert family_of(config_at(f"file:{tmp_path}")) is None


def test_a_model_type_tells_families_of_one_architecture_apart() -> None:
    config = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "kimi_k2"}
    assert family_of(config) == find_family("kimi-k2")
    assert family_of({**config, "model_type": "deepseek_v3"}) == find_family("deepseek-v3")


def test_a_wrapped_model_has_its_keys_inside() -> None:
    kimi = family("kimi-k2")
    assert config_findings(kimi, {"text_config": {"topk_method": "noaux_tc"}}) == ()
    assert config_findings(kimi, {"topk_method": "noaux_tc", "text_config": {"hidden_size": 1}})


def test_what_is_not_known_of_a_model_is_said() -> None:
    config: dict[str, object] = {"architectures": ["NovelForCausalLM"], "depth": 2}
    assert shape_findings(config, shape_of(config, "config.json")) == snapshot(
        (
            "Slipway does not know the architecture NovelForCausalLM: the engine decides whether to serve it",
            "config.json does not say how much memory keys and values take (the number of layers is missing): only measurements will tell",
            "config.json does not say which context is the longest: only measurements will tell",
        )
    )
    config |= {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "num_attention_heads": 4}
    assert shape_findings(config, shape_of(config, "config.json")) == snapshot(
        (
            "config.json does not say how much memory keys and values take (the number of layers is missing): only measurements will tell",
            "config.json does not say which context is the longest: only measurements will tell",
        )
    )


def test_a_staged_model_has_what_its_family_needs(tmp_path: Path) -> None:
    config = {"architectures": ["DeepseekV3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json has topk_method None") as caught:
        family_in(tmp_path)
    assert caught.value.fix == "set topk_method to 'noaux_tc', or use the model's original config.json"
    (tmp_path / "config.json").write_text(json.dumps(config | {"topk_method": "noaux_tc"}))
    assert family_in(tmp_path) == family("deepseek-v3")
    check_flags(tmp_path, ["vllm", "serve", "--dtype", "bfloat16"])
    check_flags(tmp_path, ["vllm", "serve", "--quantization", "fp8"])  # a copy in bfloat16
    quantized = config | {"topk_method": "noaux_tc", "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(quantized))
    with pytest.raises(ModelError, match="--quantization must not be given"):
        check_flags(tmp_path, ["vllm", "serve", "--quantization", "fp8"])
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))
    assert family_in(tmp_path) is None
    check_flags(tmp_path, ["--quantization"])


def test_the_tiny_model_is_of_a_family(repository: Path) -> None:
    assert family_of(config_at(f"file:{repository / 'examples' / 'tiny' / 'model'}")) is not None


@pytest.mark.parametrize(
    ("name", "capabilities", "dtype", "judged"),
    [
        ("llama", ["8.0"], "bfloat16", "bfloat16"),
        ("llama", ["7.5", "8.0"], "float16", "float16"),
        ("llama", [], "bfloat16", "bfloat16"),
        ("gemma", ["7.5"], None, "bfloat16"),
        ("deepseek-v2", ["7.0"], None, "bfloat16"),
        ("deepseek-v3", ["9.0"], "bfloat16", "bfloat16"),
    ],
)
def test_the_type_to_serve_in(name: str, capabilities: list[str], dtype: str | None, judged: str) -> None:
    assert serving_dtype(family(name), capabilities) == dtype
    assert served_as(family(name), capabilities) == judged


def test_deepseek_v3_says_what_it_needs() -> None:
    v3 = family("deepseek-v3")
    overflow = dtype_finding(v3, "float16")
    found = [
        overflow,
        *config_findings(v3, {"architectures": ["DeepseekV3ForCausalLM"]}),
        *flag_findings(v3, ["vllm", "serve", "--quantization", "fp8"]),
        *host_findings(v3, ["8.0"] * 8, 640_000_000_000, 0.9),
    ]
    assert [(one.message, one.fix, one.sources[0]) for one in found if one] == snapshot(
        [
            ("DeepSeek V3 and R1 overflows in float16", "serve it in bfloat16", "KB-19"),
            (
                "config.json has topk_method None, DeepSeek V3 and R1 needs 'noaux_tc'",
                "set topk_method to 'noaux_tc', or use the model's original config.json",
                "deepseek-ai/DeepSeek-R1#588 (fp8e4nv below 8.9)",
            ),
            (
                "--quantization must not be given: DeepSeek V3 and R1 comes in fp8 already",
                "leave --quantization out",
                "deepseek-ai/DeepSeek-R1#588 (fp8e4nv below 8.9)",
            ),
            (
                "DeepSeek V3 and R1 comes in fp8, which compute capability 8.0 does not compute in",
                "AWQ weights on 8 x A100 or 8 x H100, W4A8 on 8 x H100, or 2 x 8 H100 for the native ones",
                "WEIGHTS-NONE",
            ),
            (
                "its weights take 671 GB, 576 GB may be used",
                "AWQ weights on 8 x A100 or 8 x H100, W4A8 on 8 x H100, or 2 x 8 H100 for the native ones",
                "deepseek-ai/DeepSeek-R1#588 (fp8e4nv below 8.9)",
            ),
        ]
    )
    assert dtype_finding(v3, "bfloat16") is None
    assert config_findings(v3, {"topk_method": "noaux_tc"}) == ()
    assert host_findings(v3, ["9.0"] * 8, 8 * 141_000_000_000, 0.9) == ()
    assert host_findings(v3, [], None, 0.9) == ()


def test_a_gpu_too_old_for_the_only_type_is_found() -> None:
    assert [one.message for one in host_findings(family("gemma"), ["7.0"], None, 0.9)] == snapshot(
        ["Gemma 1 to 3 comes in bfloat16, which compute capability 7.0 does not compute in"]
    )
    assert host_findings(family("llama"), ["7.0"], None, 0.9) == ()
