"""Damaged copies of a model: noise in one tensor, or two tensors of equal shape swapped between layers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from random_model import read_floats, rewrite_model

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@dataclass(frozen=True)
class Damage:
    """Noise of the tensor's own standard deviation in one layer; or, with `other`, that layer's tensor swapped in."""

    projection: str
    layer: int
    other: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        what = "noise in" if self.other is None else f"layer {self.other}'s swapped with"
        return f"{what} layer {self.layer}'s {self.projection}"

    def apply(self, source: Path, copy: Path) -> Path:
        """A damaged copy of the one-file model in `source`; `copy` must not exist."""
        shutil.copytree(source, copy)
        return rewrite_model(copy, tensors=dict(self._changed(read_floats(copy / "model.safetensors"))))

    def _changed(
        self, tensors: dict[str, np.ndarray[Any, Any]]
    ) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        here = self._tensor(self.layer)
        if self.other is None:
            noise = np.random.default_rng(self.seed).normal(0, tensors[here].std(), tensors[here].shape)
            yield here, tensors[here] + noise.astype(np.float32)
        else:
            there = self._tensor(self.other)
            yield from ((here, tensors[there]), (there, tensors[here]))

    def _tensor(self, layer: int) -> str:
        return f"model.layers.{layer}.{self.projection}.weight"


def every_noise(layers: int, seed: int) -> list[Damage]:
    """Noise in each projection of each layer in turn."""
    return [
        Damage(projection, layer, seed=seed + number)
        for number, (layer, projection) in enumerate(
            (one, two) for one in range(layers) for two in PROJECTIONS
        )
    ]


def every_swap(layers: int) -> list[Damage]:
    """Each projection swapped between each two layers."""
    return [
        Damage(projection, low, other=high)
        for low in range(layers)
        for high in range(low + 1, layers)
        for projection in PROJECTIONS
    ]


def drawn_cases(layers: int, count: int, seed: int) -> list[Damage]:
    """`count` cases, half noise and half swaps, drawn without repetition."""
    random = np.random.default_rng(seed)
    noise, swaps = every_noise(layers, seed), every_swap(layers)
    picked = [noise[number] for number in random.permutation(len(noise))[: (count + 1) // 2]]
    return picked + [swaps[number] for number in random.permutation(len(swaps))[: count // 2]]
