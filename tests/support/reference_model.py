"""The Llama and Qwen3 architectures in numpy, straight from their papers: what a converted model must compute."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from random_model import read_floats

Array = np.ndarray[Any, Any]


class ReferenceModel:
    """A model read from a folder in the Hugging Face layout. All sums in 64 bits."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors: dict[str, Array] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self.tensors |= {name: values.astype(np.float64) for name, values in read_floats(path).items()}
        self.heads: int = self.config["num_attention_heads"]
        self.kv_heads: int = self.config["num_key_value_heads"]
        self.head_dim: int = self.config["head_dim"]

    def log_probabilities(self, tokens: list[int]) -> Array:
        """Natural log-probabilities of the next token after each of `tokens`: shape (tokens, vocabulary)."""
        x = self.tensors["model.embed_tokens.weight"][tokens]
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            x = x + self._attend(prefix + "self_attn.", self._norm(x, prefix + "input_layernorm"))
            x = x + self._feed_forward(prefix + "mlp.", self._norm(x, prefix + "post_attention_layernorm"))
        tied = self.config["tie_word_embeddings"]
        head = self.tensors["model.embed_tokens.weight" if tied else "lm_head.weight"]
        logits = self._norm(x, "model.norm") @ head.T
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    def _norm(self, x: Array, name: str) -> Array:
        mean = (x * x).mean(-1, keepdims=True)
        return x / np.sqrt(mean + self.config["rms_norm_eps"]) * self.tensors[name + ".weight"]

    def _project(self, x: Array, name: str) -> Array:
        return x @ self.tensors[name + ".weight"].T + self.tensors.get(name + ".bias", 0.0)

    def _attend(self, prefix: str, x: Array) -> Array:
        length = len(x)
        q = self._project(x, prefix + "q_proj").reshape(length, self.heads, self.head_dim)
        k = self._project(x, prefix + "k_proj").reshape(length, self.kv_heads, self.head_dim)
        v = self._project(x, prefix + "v_proj").reshape(length, self.kv_heads, self.head_dim)
        if prefix + "q_norm.weight" in self.tensors:
            q, k = self._norm(q, prefix + "q_norm"), self._norm(k, prefix + "k_norm")
        q, k = self._rotate(q), self._rotate(k)
        group = self.heads // self.kv_heads
        k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
        weights = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(self.head_dim)
        weights = np.where(np.tril(np.ones((length, length), bool)), weights, -np.inf)
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(length, -1)
        return self._project(mixed, prefix + "o_proj")

    def _rotate(self, x: Array) -> Array:
        angles = np.arange(len(x))[:, None] * self._frequencies()[None, :]
        size = yarn_magnitude(self.config.get("rope_scaling") or {})
        cos, sin = size * np.cos(angles)[:, None, :], size * np.sin(angles)[:, None, :]
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def _frequencies(self) -> Array:
        base = self.config["rope_theta"] ** -(np.arange(0, self.head_dim, 2) / self.head_dim)
        scaling = self.config.get("rope_scaling") or {}
        if scaling.get("rope_type") == "linear":
            return base / scaling["factor"]
        if scaling.get("rope_type") == "llama3":
            return np.array([llama3_frequency(frequency, scaling) for frequency in base])
        if scaling.get("rope_type") == "yarn":
            return yarn_frequencies(base, self.config["rope_theta"], scaling)
        return base

    def _feed_forward(self, prefix: str, x: Array) -> Array:
        gate, up = self._project(x, prefix + "gate_proj"), self._project(x, prefix + "up_proj")
        return self._project(gate / (1 + np.exp(-gate)) * up, prefix + "down_proj")


def yarn_frequencies(base: Array, theta: float, scaling: dict[str, Any]) -> Array:
    """YaRN's rule (arXiv 2309.00071, 3.2): fast pairs stay, slow ones are divided, with a ramp between."""
    pairs, old = len(base), scaling["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        return pairs * math.log(old / (turns * 2 * math.pi)) / math.log(theta)

    first = max(math.floor(pair_of(scaling.get("beta_fast", 32))), 0)
    last = min(math.ceil(pair_of(scaling.get("beta_slow", 1))), 2 * pairs - 1)
    slow = np.clip((np.arange(pairs) - first) / max(last - first, 1e-3), 0, 1)
    return base * (1 - slow) + base / scaling["factor"] * slow


def yarn_magnitude(scaling: dict[str, Any]) -> float:
    """What queries and keys are multiplied by: `attention_factor`, or else what the factor gives, each with vLLM's
    `attn_factor`."""
    if scaling.get("rope_type") != "yarn":
        return 1.0
    grown = math.log(scaling["factor"])
    usual = 1 + 0.1 * grown
    if "mscale" in scaling:
        usual = (1 + 0.1 * scaling["mscale"] * grown) / (1 + 0.1 * scaling["mscale_all_dim"] * grown)
    return float(scaling.get("attention_factor", usual) * scaling.get("attn_factor", 1.0))


def llama3_frequency(frequency: float, scaling: dict[str, Any]) -> float:
    """Llama 3.1's rule: high frequencies stay, low ones are divided, those between are mixed."""
    old = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / frequency
    if wavelength < old / scaling["high_freq_factor"]:
        return frequency
    if wavelength > old / scaling["low_freq_factor"]:
        return frequency / float(scaling["factor"])
    share = (old / wavelength - scaling["low_freq_factor"]) / (
        scaling["high_freq_factor"] - scaling["low_freq_factor"]
    )
    return (1 - share) * frequency / float(scaling["factor"]) + share * frequency
