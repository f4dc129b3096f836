"""What is predicted of keys and values, compared with what Transformers keeps of a tiny model of that architecture."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.core.model_shape import shape_of

pytestmark = [pytest.mark.engine]

TOKENS, WINDOW = 40, 8
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
SLIDING = {**SMALL, "head_dim": 16, "sliding_window": WINDOW}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4}
OLD = {"vocab_size": 64, "n_layer": 3, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "bloom": {**OLD, "hidden_size": 32},
    "cohere2": SLIDING,
    "deepseek_v3": {
        **SMALL, **EXPERTS, "kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
    },
    "falcon": {**SMALL, "multi_query": True},
    "falcon_h1": {**SMALL, **MAMBA, "head_dim": 8, "mamba_d_ssm": 64},
    "gemma2": SLIDING,
    "gemma3_text": SLIDING,
    "gemma3n_text": {
        **SLIDING, "num_kv_shared_layers": 3, "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 2,
        "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "intermediate_size": [48] * 8,
        "laurel_rank": 4, "activation_sparsity_pattern": [0.0] * 8,
    },
    "gpt2": {**OLD, "n_embd": 32, "n_positions": 64},
    "gpt_oss": {**SLIDING, **EXPERTS},
    "granitemoehybrid": {
        **SMALL, **MAMBA, **EXPERTS, "layer_types": ["mamba", "attention"] * 4, "shared_intermediate_size": 16,
    },
    "jamba": {
        **SMALL, "num_experts": 4, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
        "attn_layer_period": 4, "attn_layer_offset": 2,
    },
    "lfm2": {**SMALL, "layer_types": ["conv", "full_attention"] * 4},
    "llama4_text": {**SMALL, "head_dim": 8, "attention_chunk_size": WINDOW, "num_local_experts": 4},
    "minimax": {**SMALL, "num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"] * 4},
    "mistral": SLIDING,
    "mixtral": {**SMALL, "num_local_experts": 4},
    "nemotron_h": {
        **SMALL, "head_dim": 8, "hybrid_override_pattern": "M-M*M-M*", "mamba_num_heads": 8, "mamba_head_dim": 8,
        "ssm_state_size": 4, "n_groups": 2,
    },
    "qwen2": {**SLIDING, "use_sliding_window": True, "max_window_layers": 5},
    "qwen3_next": {
        **SMALL, **EXPERTS, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16,
    },
}  # fmt: skip


def test_transformers_keeps_what_was_predicted(transformers_python: Path, tmp_path: Path) -> None:
    given = tmp_path / "models.json"
    given.write_text(json.dumps([{"model_type": name, **config} for name, config in MODELS.items()]))
    script = Path(__file__).parents[1] / "support" / "kept_keys.py"
    run = subprocess.run(
        [transformers_python, script, given, str(TOKENS)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    wrong = []
    for name, line in zip(MODELS, run.stdout.splitlines(), strict=True):
        found = json.loads(line)
        for config in (found["config"], {**MODELS[name], "model_type": name}):
            kept = shape_of(config, name).kept or ()
            # Of the window the library drops the oldest token before it adds the next.
            predicted = {str((one.window or TOKENS + 1) - 1): one.token_bytes for one in kept}
            if predicted != found["kept"]:
                wrong.append((name, predicted, found["kept"]))
    assert wrong == []
