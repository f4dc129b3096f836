"""GPU and host memory of a model whose layers are offloaded: predicted, then corrected by measured peaks. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.batching.models import Footprint
from tasks.batching.placement.fits import fit_nonnegative

_BESIDE = 0.03
"""Share of the GPUs that an engine is taken to use beside weights and caches, before that is measured."""

# How far the truth may lie from what is predicted: of the weights, of what lies beside them and of what a sequence
# takes beside its cache, in terms of that cache; and how well a peak is measured.
_WEIGHTS_OFF, _BESIDE_OFF, _EACH_OFF, _PEAK_OFF = 0.05, 0.05, 0.3, 0.003


class Peak(NamedTuple):
    """Measured: most bytes on the GPUs, with so many of the engine's layers there, serving `batch` at once."""

    gpu_layers: int
    batch: int
    size_bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes by layers on GPUs and sequences. `weights` scales the predicted weights; `beside_bytes` are taken however
    many sequences are served, `each_bytes` for each, both beside weights and caches."""

    footprint: Footprint
    weights: float
    beside_bytes: float
    each_bytes: float

    def gpu_bytes(self, gpu_layers: int, batch: int) -> float:
        """Peak on the GPUs."""
        return self._fixed(gpu_layers) + self.a_sequence(gpu_layers) * batch

    def a_sequence(self, gpu_layers: int) -> float:
        """What each sequence adds to that."""
        return self.each_bytes + self.footprint.kv_bytes * blocks(self.footprint, gpu_layers)

    def most(self, gpu_layers: int, gpu_limit: float, host_limit: float) -> int:
        """The largest number of sequences that keeps both limits, bytes; 0 where not even one does."""
        on_gpus = (gpu_limit - self._fixed(gpu_layers)) / max(1.0, self.a_sequence(gpu_layers))
        return max(0, math.floor(min(on_gpus, most_on_host(self.footprint, gpu_layers, host_limit))))

    def _fixed(self, gpu_layers: int) -> float:
        return self.weights * _weights(self.footprint, gpu_layers) + self.beside_bytes


def blocks(footprint: Footprint, gpu_layers: int) -> int:
    """Layers with a cache that lie on GPUs: the output layer is the first to be put there, and has none.

    https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp (`i_gpu_start`)
    """
    return min(max(gpu_layers - 1, 0), footprint.layers)


def most_on_host(footprint: Footprint, gpu_layers: int, host_limit: float) -> float:
    """Sequences for which the host has memory beside the weights of the layers that it keeps; below 1 for none."""
    left = footprint.layers - blocks(footprint, gpu_layers)
    return (host_limit / left - footprint.layer_bytes) / footprint.kv_bytes if left else math.inf


def all_layers(footprint: Footprint) -> int:
    """The number that puts every layer on GPUs."""
    return footprint.layers + 1


def learn_memory(footprint: Footprint, peaks: Sequence[Peak], gpu_limit: float) -> Memory:
    """Predictions corrected by what was measured, as far as that goes beyond what the prediction may be off by."""
    cache = footprint.kv_bytes * footprint.layers
    weights_all = _weights(footprint, all_layers(footprint))
    doubts = (_WEIGHTS_OFF, _BESIDE_OFF * gpu_limit, _EACH_OFF * cache)
    rows = [
        [1 / doubts[0], 0.0, 0.0],
        [0.0, 1 / doubts[1], 0.0],
        [0.0, 0.0, 1 / doubts[2]],
    ]
    targets = [1 / doubts[0], _BESIDE * gpu_limit / doubts[1], 0.0]
    for peak in peaks:
        doubt = _PEAK_OFF * max(peak.size_bytes, weights_all / 10)
        caches = footprint.kv_bytes * blocks(footprint, peak.gpu_layers) * peak.batch
        rows.append([_weights(footprint, peak.gpu_layers) / doubt, 1 / doubt, peak.batch / doubt])
        targets.append((peak.size_bytes - caches) / doubt)
    weights, beside, each = fit_nonnegative(rows, targets)
    return Memory(footprint, weights=weights, beside_bytes=beside, each_bytes=each)


def _weights(footprint: Footprint, gpu_layers: int) -> float:
    if gpu_layers < 1:
        return 0.0
    return footprint.output_bytes + blocks(footprint, gpu_layers) * footprint.layer_bytes
