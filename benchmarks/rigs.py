"""Serving rigs made from a seed: throughput that saturates, memory with an offset, a cliff, noise.

What the batch search is scored on. The generator stays as it is: a change would let the search be fitted to its test.
Scores are taken on seeds that nothing was tuned with.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

from tasks.batching.models import Limits, Run

Shape = Literal["saturating", "roofline", "declining", "tiled"]
SHAPES: tuple[Shape, ...] = ("saturating", "roofline", "declining", "tiled")

LATENCY = "tpot_p95"
MEMORY_FRACTION = 0.9
TOLERANCE = 0.03
_TILE = 8
_TILE_LOSS = 0.06


@dataclass(frozen=True)
class Rig:
    """One machine, model and load as they truly are; what is measured of them is noisy.

    `top` is the most tokens/s, `half` the size at which half of it is reached; memory in bytes, latency in ms.
    `spread` are standard deviations of the logarithm.
    """

    seed: int
    shape: Shape
    limits: Limits
    capacity_bytes: float
    fixed_bytes: float
    each_bytes: float
    top: float
    half: float
    latency_ms: float
    latency_each_ms: float
    spread: float
    memory_spread: float

    def throughput(self, batch: int) -> float:
        """Tokens/s without noise."""
        if self.shape == "roofline":
            return self.top * min(1.0, batch / (2 * self.half))
        found = self.top * batch / (batch + self.half)
        if self.shape == "declining":
            beyond = max(0.0, batch / (8 * self.half) - 1)
            return found / (1 + 0.5 * beyond)
        if self.shape == "tiled" and batch % _TILE:
            return found * (1 - _TILE_LOSS)
        return found

    def latency(self, batch: int) -> float:
        """Time per output token without noise, in ms."""
        return self.latency_ms + self.latency_each_ms * batch

    def peak_bytes(self, batch: int) -> float:
        """Peak memory without noise."""
        return self.fixed_bytes + self.each_bytes * batch

    def fits(self, batch: int) -> bool:
        """Whether the size truly keeps every bound."""
        bound = self.limits.latency_ms.get(LATENCY, math.inf)
        return self.peak_bytes(batch) <= self.limits.memory_bytes and self.latency(batch) <= bound

    def best(self) -> float:
        """The most true throughput of any size that fits; 0 where none does."""
        sizes = range(1, self.limits.max_batch + 1)
        return max((self.throughput(batch) for batch in sizes if self.fits(batch)), default=0.0)

    def measure(self, batch: int, noise: random.Random) -> Run:
        """One noisy run; out of memory where its peak goes over the capacity."""
        peak = self.peak_bytes(batch) * math.exp(abs(noise.gauss(0, self.memory_spread)))
        if peak > self.capacity_bytes:
            return Run(batch=batch, oom=True)
        return Run(
            batch=batch,
            peak_bytes=int(peak),
            latency_ms={LATENCY: self.latency(batch) * math.exp(noise.gauss(0, self.spread))},
            throughput=self.throughput(batch) * math.exp(noise.gauss(0, self.spread)),
        )


def make_rig(seed: int) -> Rig:
    """The rig of a seed. In most, memory or the latency objective ends the range; in some nothing does, or not even
    one sequence fits."""
    make = random.Random(f"rig {seed}")
    capacity = 2 ** make.uniform(33, 37)  # 8 to 128 GiB
    bound = MEMORY_FRACTION * capacity
    fixed = bound * make.uniform(0.1, 0.95)
    room = 2 ** make.uniform(-0.5, 11)  # sequences that memory has room for
    latency_ms = 2 ** make.uniform(1, 6)
    latency_each_ms = latency_ms * 2 ** make.uniform(-9, -3)
    reach = 2 ** make.uniform(-0.5, 10)  # sequences at which the latency objective is reached
    latency = {LATENCY: latency_ms + latency_each_ms * reach} if make.random() < 0.6 else {}
    limits = Limits(
        memory_bytes=int(bound),
        latency_ms=latency,
        tolerance=TOLERANCE,
        max_batch=make.choice((64, 256, 512, 1024)),
    )
    return Rig(
        seed=seed,
        shape=make.choice(SHAPES),
        limits=limits,
        capacity_bytes=capacity,
        fixed_bytes=fixed,
        each_bytes=(bound - fixed) / room,
        top=2 ** make.uniform(6, 14),
        half=2 ** make.uniform(0, 7),
        latency_ms=latency_ms,
        latency_each_ms=latency_each_ms,
        spread=make.uniform(0.005, 0.05),
        memory_spread=make.uniform(0, 0.01),
    )
