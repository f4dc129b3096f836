"""How long a step takes with some layers on GPUs and the others on the host, learnt from measured throughput. Pure.

A layer takes a time of its own and more for each sequence, on the GPU as on the host; a step takes what its layers
take, and the way between the two places. All of these are fitted to what was measured. What no measurement tells yet,
such as how slow the host is before a layer of it was measured, is believed to be as it often is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tasks.batching.placement.fits import fit_nonnegative

_BELIEF = 0.05
"""What is believed weighs this much of a measurement."""

_SLOWER = 4.0
"""A layer on the host is believed to be slower by this factor."""

_GPU_HALF, _HOST_HALF = 32, 8
"""Sequences at which a layer is believed to take twice as long as for none, until that is measured."""


class Step(NamedTuple):
    """Measured: `on` layers on GPUs and `off` on the host, `batch` sequences, ms for one token of each; latencies by
    name, ms."""

    on: int
    off: int
    batch: int
    step_ms: float
    latency_ms: Mapping[str, float]


@dataclass(frozen=True)
class StepTimes:
    """Times in ms: of a layer on a GPU, for each sequence there, of one on the host and for each sequence there, and
    of the way between. `ratios` are each latency's part of a step."""

    gpu: float
    gpu_each: float
    host: float
    host_each: float
    way: float
    ratios: Mapping[str, float]

    def step_ms(self, on: int, off: int, batch: float) -> float:
        """One step of `batch` sequences."""
        still, each = self._parts(on, off)
        return still + each * batch

    def throughput(self, on: int, off: int, batch: int) -> float:
        """Tokens/s."""
        return 1000 * batch / max(self.step_ms(on, off, batch), 1e-9)

    def most(self, on: int, off: int, bounds_ms: Mapping[str, float]) -> float:
        """The number of sequences at which the first latency reaches its bound."""
        still, each = self._parts(on, off)
        found = math.inf
        for name, bound in bounds_ms.items():
            ratio = self.ratios.get(name, 0.0)
            if ratio > 0 and each > 0:
                found = min(found, (bound / ratio - still) / each)
            elif ratio * still > bound:
                return 0.0
        return found

    def _parts(self, on: int, off: int) -> tuple[float, float]:
        still = on * self.gpu + off * self.host + (self.way if off else 0.0)
        return still, on * self.gpu_each + off * self.host_each


def learn_steps(steps: Sequence[Step]) -> StepTimes:
    """Times fitted to `steps`, relative errors alike."""
    layers = steps[0].on + steps[0].off
    middle = statistics.geometric_mean(step.step_ms for step in steps)
    weight = _BELIEF * layers / middle
    rows = [
        [-weight, weight * _GPU_HALF, 0.0, 0.0, 0.0],
        [-weight, 0.0, weight / _SLOWER, 0.0, 0.0],
        [0.0, 0.0, -weight / _SLOWER, weight / _SLOWER * _HOST_HALF, 0.0],
        [0.0, 0.0, 0.0, 0.0, _BELIEF / middle],
    ]
    targets = [0.0] * len(rows)
    for step in steps:
        row = (step.on, step.on * step.batch, step.off, step.off * step.batch, float(step.off > 0))
        rows.append([value / step.step_ms for value in row])
        targets.append(1.0)
    names = {name for step in steps for name in step.latency_ms}
    ratios = {
        name: statistics.median(
            step.latency_ms[name] / step.step_ms for step in steps if name in step.latency_ms
        )
        for name in names
    }
    gpu, gpu_each, host, host_each, way = fit_nonnegative(rows, targets)
    return StepTimes(gpu, gpu_each, host, host_each, way, ratios)
