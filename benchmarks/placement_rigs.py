"""Machines with GPUs made from a seed, on which a model can be placed in many ways. What the placement search is
scored on.

Two kinds. Of an `OffloadRig` some layers lie on the GPU and the others on the host, where they are slower, each with
its own part of every sequence's cache. Over a `SplitRig` each layer is split; the cache is a pool that is taken at
the start. The generator stays as it is: a change would let the search be fitted to its test. Scores are taken on
seeds that nothing was tuned with.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tasks.batching.models import Devices, Footprint, Limits, Placement, Run

TPOT, TTFT = "tpot_p95", "ttft_p95"
MEMORY_FRACTION = 0.9
TOLERANCE = 0.03
LADDER = (2048, 8192, 16384)
"""Tokens a step that are worth trying beside the engine's own default."""

_TILE = 8
_PREEMPTED = 0.97
_LARGE_GPU = 70 * 2**30
Roof = Literal["sum", "roofline", "tiled"]


@dataclass(frozen=True)
class BaseRig:
    """What both kinds have: bounds, what is predicted of the model, and noise. `spread` are standard deviations of
    the logarithm."""

    seed: int
    limits: Limits
    footprint: Footprint
    devices: Devices
    spread: float
    memory_spread: float

    @property
    def capacity_bytes(self) -> int:
        """What there is of the memory that is measured."""
        return sum(self.devices.gpu_bytes)

    def truth(self, placement: Placement, batch: int) -> Run:
        """What would be measured without noise."""
        raise NotImplementedError

    def may_use(self, placement: Placement) -> float:
        """Bytes of GPU memory that the bound leaves to this placement."""
        return self.limits.memory_bytes

    def fits(self, placement: Placement, batch: int) -> bool:
        """Whether this truly keeps every bound."""
        return self.keeps(placement, self.truth(placement, batch))

    def keeps(self, placement: Placement, run: Run) -> bool:
        """Whether these figures keep every bound."""
        return (
            run.answered
            and (run.peak_bytes or 0) <= self.may_use(placement)
            and all(run.latency_ms[name] <= bound for name, bound in self.limits.latency_ms.items())
        )

    def placements(self) -> Iterator[Placement]:
        """All that one could try; for what is answered best, no other is needed."""
        raise NotImplementedError

    def best(self) -> float:
        """The most true throughput of anything that fits; 0 where nothing does."""
        sizes = range(1, self.limits.max_batch + 1)
        found = 0.0
        for placement, batch in itertools.product(self.placements(), sizes):
            run = self.truth(placement, batch)
            if (run.throughput or 0.0) > found and self.keeps(placement, run):
                found = run.throughput or 0.0
        return found

    def measure(self, placement: Placement, batch: int, noise: random.Random) -> Run:
        """One noisy run; out of memory where that was near, too, and the noise was against it."""
        run = self.truth(placement, batch)
        grown = math.exp(abs(noise.gauss(0, self.memory_spread)))
        slower, less = (math.exp(noise.gauss(0, self.spread)) for _ in range(2))
        if run.oom or (run.peak_bytes or 0) * grown > self.capacity_bytes:
            return Run(batch=batch, oom=True)
        if not run.answered:
            return run
        return run.model_copy(
            update={
                "peak_bytes": int((run.peak_bytes or 0) * grown),
                "latency_ms": {name: value * slower for name, value in run.latency_ms.items()},
                "throughput": (run.throughput or 0.0) * less,
            }
        )


@dataclass(frozen=True)
class OffloadRig(BaseRig):
    """Layers on a GPU and on the host. Times in ms of one layer: `gpu_ms` however many sequences, and `gpu_each_ms`
    more for each; the host's alike. `cross_ms` is what it costs a step that there are two places, `step_ms` what
    belongs to none. `layer_bytes` are the true weights, which are not all alike, `fixed_bytes` of the GPU are taken
    beside weights and caches, `buffer_bytes` more for each sequence."""

    roof: Roof
    layer_bytes: tuple[float, ...]
    fixed_bytes: float
    buffer_bytes: float
    gpu_ms: float
    gpu_each_ms: float
    host_ms: float
    host_each_ms: float
    cross_ms: float
    step_ms: float

    def placements(self) -> Iterator[Placement]:
        return (Placement(gpu_layers=count) for count in range(1, self.footprint.layers + 2))

    def truth(self, placement: Placement, batch: int) -> Run:
        on = min(max(placement.gpu_layers - 1, 0), self.footprint.layers)
        off = self.footprint.layers - on
        cache = self.footprint.kv_bytes * batch
        weights = sum(self.layer_bytes[off:]) + self.footprint.output_bytes
        peak = self.fixed_bytes + weights + on * cache + self.buffer_bytes * batch
        host = sum(self.layer_bytes[:off]) + off * cache
        if peak > sum(self.devices.gpu_bytes) or host > self.devices.host_bytes:
            return Run(batch=batch, oom=True)
        wide = -(-batch // _TILE) * _TILE if self.roof == "tiled" else batch
        step = self.step_ms + (self.cross_ms if off else 0.0)
        step += on * self._roofed(self.gpu_ms, self.gpu_each_ms * wide)
        step += off * self._roofed(self.host_ms, self.host_each_ms * batch)
        return Run(batch=batch, peak_bytes=int(peak), latency_ms={TPOT: step}, throughput=1000 * batch / step)

    def _roofed(self, least: float, grows: float) -> float:
        return max(least, grows) if self.roof == "roofline" else least + grows


@dataclass(frozen=True)
class SplitRig(BaseRig):
    """Layers split over GPUs that take a pool at the start.

    `beside` is the share of a GPU that is taken beyond what was asked for, `free` what others leave of it. A step
    takes `weights_ms` and `each_ms` for each sequence, both divided by the GPUs, and `talk_ms` more for each doubling
    of them. A prompt has `prompt` tokens of `token_ms` each and `answer` come out; steps of few tokens are less
    efficient, by `half_tokens`, those of many need `token_bytes` of memory for each.
    """

    beside: float
    free: float
    weights_ms: float
    each_ms: float
    talk_ms: float
    prompt: int
    answer: int
    token_ms: float
    half_tokens: float
    token_bytes: float

    def placements(self) -> Iterator[Placement]:
        fraction = math.floor(min(MEMORY_FRACTION - self.beside, self.free) * 100) / 100
        for gpus, tokens in itertools.product(range(1, len(self.devices.gpu_bytes) + 1), (None, *LADDER)):
            heads, kv_heads = self.footprint.heads, self.footprint.kv_heads
            if heads % gpus == 0 and (kv_heads % gpus == 0 or gpus % kv_heads == 0):
                yield Placement(gpus=gpus, memory_fraction=fraction, batched_tokens=tokens)

    def may_use(self, placement: Placement) -> float:
        return self.limits.memory_bytes * placement.gpus / len(self.devices.gpu_bytes)

    def truth(self, placement: Placement, batch: int) -> Run:
        gpus, one = placement.gpus, self.devices.gpu_bytes[0]
        tokens = placement.batched_tokens or (8192 if one >= _LARGE_GPU else 2048)
        if placement.memory_fraction > self.free:
            return Run(batch=batch, oom=True)
        weights = self.footprint.layers * self.footprint.layer_bytes + self.footprint.output_bytes
        held = max(1.0, self.footprint.kv_heads / gpus) / self.footprint.kv_heads
        cache = self.footprint.layers * self.footprint.kv_bytes * held
        pool = placement.memory_fraction * one - 1.02 * weights / gpus - self.token_bytes * tokens
        peak = gpus * one * (placement.memory_fraction + self.beside)
        if pool < cache or peak > gpus * one:
            return Run(batch=batch, oom=True)
        running = min(float(batch), pool / cache)
        step = (self.weights_ms + self.each_ms * running) / gpus + self.talk_ms * math.log2(gpus)
        token = self.token_ms / gpus * (1 + self.half_tokens / tokens)
        work = step + running * self.prompt / self.answer * token
        first = step + self.prompt * token * (1 + 0.3 * running) + self.answer * step * (batch / running - 1)
        return Run(
            batch=batch,
            peak_bytes=int(peak),
            latency_ms={TPOT: step + min(tokens, self.prompt * running) * token, TTFT: first},
            throughput=1000 * running / work * (1.0 if running == batch else _PREEMPTED),
        )


Rig = OffloadRig | SplitRig


def make_offload_rig(seed: int) -> OffloadRig:
    """From models that fit five times to those three times too big for the GPU; a sequence takes from a thousandth to
    half of it. The host is 1.5 to 60 times slower, and its memory is too small at times."""
    make = random.Random(f"offload {seed}")
    capacity = 2 ** make.uniform(33, 36.5)  # 8 to 90 GiB
    layers = make.choice((16, 24, 32, 48, 64, 80))
    weights = capacity * 2 ** make.uniform(-2.3, 1.6)
    output = weights * make.uniform(0.01, 0.12)
    each = (weights - output) / layers
    uneven = make.choice((0.0, 0.05, 0.15))
    cache = capacity * 2 ** make.uniform(-10, -1)
    gpu_ms = 2 ** make.uniform(1, 6) / layers
    gpu_each_ms = gpu_ms / 2 ** make.uniform(1, 8)
    slower = 2 ** make.uniform(0.6, 5.9)
    host_ms = gpu_ms * slower
    rig = OffloadRig(
        seed=seed,
        limits=Limits(
            memory_bytes=int(MEMORY_FRACTION * capacity),
            tolerance=TOLERANCE,
            max_batch=make.choice((16, 64, 256)),
        ),
        footprint=Footprint(
            layers=layers,
            layer_bytes=int(each * make.uniform(0.97, 1.03)),
            output_bytes=int(output),
            kv_bytes=int(cache / layers) + 1,
            heads=32,
            kv_heads=8,
        ),
        devices=Devices(gpu_bytes=(int(capacity),), host_bytes=int(capacity * 2 ** make.uniform(-0.5, 3))),
        spread=make.uniform(0.005, 0.05),
        memory_spread=make.uniform(0, 0.01),
        roof=make.choice(("sum", "roofline", "tiled")),
        layer_bytes=tuple(each * (1 + make.uniform(-uneven, uneven)) for _ in range(layers)),
        fixed_bytes=capacity * make.uniform(0.01, 0.08),
        buffer_bytes=cache * make.choice((0.0, make.uniform(0, 0.3))),
        gpu_ms=gpu_ms,
        gpu_each_ms=gpu_each_ms,
        host_ms=host_ms,
        host_each_ms=max(host_ms / 2 ** make.uniform(-1, 5), slower * gpu_each_ms),
        cross_ms=gpu_ms * layers * make.uniform(0, 0.2),
        step_ms=gpu_ms * layers * make.uniform(0, 0.1),
    )
    latency = {TPOT: gpu_ms * layers * 2 ** make.uniform(-0.3, 5)} if make.random() < 0.5 else {}
    return _bounded(rig, latency)


def make_split_rig(seed: int) -> SplitRig:
    """One to eight GPUs. Links are fast or slow, models small enough for one GPU or too big for all; in some, others
    hold memory, or the engine takes more than it was told to."""
    make = random.Random(f"split {seed}")
    one = make.choice((16, 24, 40, 48, 80, 141)) * 2**30
    gpus = make.choice((1, 2, 4, 8))
    kv_heads = make.choice((2, 4, 8, 8, 16))
    layers = make.choice((24, 32, 48, 64, 80))
    weights = one * 2 ** make.uniform(-3, 2.5)
    output = weights * make.uniform(0.01, 0.08)
    weights_ms = 2 ** make.uniform(2, 6)
    each_ms = weights_ms / 2 ** make.uniform(2, 9)
    rig = SplitRig(
        seed=seed,
        limits=Limits(
            memory_bytes=int(MEMORY_FRACTION * one * gpus),
            tolerance=TOLERANCE,
            max_batch=make.choice((64, 256, 512)),
        ),
        footprint=Footprint(
            layers=layers,
            layer_bytes=int((weights - output) / layers),
            output_bytes=int(output),
            kv_bytes=int(one * 2 ** make.uniform(-10, -3) / layers) + 1,
            heads=kv_heads * make.choice((4, 5, 7, 8)),
            kv_heads=kv_heads,
        ),
        devices=Devices(gpu_bytes=(one,) * gpus, host_bytes=4 * one),
        spread=make.uniform(0.005, 0.05),
        memory_spread=make.uniform(0, 0.002),
        beside=make.choice((0.0, 0.0, make.uniform(0, 0.06))),
        free=make.choice((1.0, 1.0, make.uniform(0.7, 0.99))),
        weights_ms=weights_ms,
        each_ms=each_ms,
        talk_ms=weights_ms * 2 ** make.uniform(-7, -1),
        prompt=int(2 ** make.uniform(5, 13)),
        answer=int(2 ** make.uniform(4, 9)),
        token_ms=each_ms / 2 ** make.uniform(2, 6),
        half_tokens=2 ** make.uniform(7, 11),
        token_bytes=one * make.uniform(0.005, 0.05) / 8192,
    )
    alone = rig.truth(Placement(gpus=gpus, memory_fraction=0.5), 1)
    base = alone.latency_ms or {TPOT: 2 * weights_ms, TTFT: 20 * weights_ms}
    latency = {name: base[name] * 2 ** make.uniform(-0.5, 5) for name in (TPOT, TTFT) if make.random() < 0.35}
    return _bounded(rig, latency)


def _bounded(rig: Rig, latency_ms: dict[str, float]) -> Rig:
    """The rig with these objectives."""
    limits = rig.limits.model_copy(update={"latency_ms": latency_ms})
    return type(rig)(**{**rig.__dict__, "limits": limits})
