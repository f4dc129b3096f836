"""Memory series as services show them, each with the truth: is there a leak? For tests and the benchmark.

Every kind is drawn with its own level, noise, length and rate of sampling, so that no threshold can be learned
from one of them. A series starts at the start of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
GIB = float(1 << 30)


@dataclass(frozen=True)
class Labelled:
    """One series: seconds, bytes, requests since start (None: not counted), and whether it leaks."""

    kind: str
    leaks: bool
    t_s: Floats
    bytes_: Floats
    requests: Floats | None
    slope_bytes_per_s: float = 0.0
    """True slope where it leaks, from its onset on."""


@dataclass(frozen=True)
class Frame:
    """What all kinds have in common: time, level, noise and load."""

    random: np.random.Generator
    t: Floats
    level: float
    span: float
    rate: Floats
    """Requests per second."""

    def noise(self) -> Floats:
        """White, correlated or spiky, 0.05 to 1.5 % of the level."""
        size = self.level * 10 ** self.random.uniform(-3.3, -1.8)
        white = self.random.standard_normal(self.t.size)
        shape = self.random.integers(3)
        if shape == 0:
            return size * white
        if shape == 1:
            return size * correlated(white, self.random.uniform(0.8, 0.995))
        return size * np.abs(white) * (1 + 8 * (self.random.random(self.t.size) < 0.02))

    def growth(self) -> float:
        """What a leak adds in the window: 8 to 150 % of the level."""
        return float(self.level * np.exp(self.random.uniform(np.log(0.08), np.log(1.5))))


def correlated(white: Floats, memory: float) -> Floats:
    """An AR(1) series of unit variance."""
    out = np.empty_like(white)
    state = white[0]
    scale = np.sqrt(1 - memory**2)
    for index, value in enumerate(white):
        state = memory * state + scale * value
        out[index] = state
    return out


def cycle(frame: Frame) -> Floats:
    """The load's share of its own peak."""
    peak = frame.rate.max()
    return frame.rate / peak if peak > 0 else frame.rate


def flat(frame: Frame) -> Floats:
    return np.zeros_like(frame.t)


def wandering(frame: Frame) -> Floats:
    """Slow correlated noise: an allocator that keeps and returns pages."""
    noise = correlated(frame.random.standard_normal(frame.t.size), 0.999)
    return frame.level * frame.random.uniform(0.005, 0.03) * noise


def plateau(frame: Frame) -> Floats:
    """A cache that fills and stays full."""
    size = frame.level * frame.random.uniform(0.1, 1.0)
    tau = frame.span * np.exp(frame.random.uniform(np.log(0.01), np.log(0.22)))
    return size * (1 - np.exp(-frame.t / tau))


def bounded_fill(frame: Frame) -> Floats:
    """A pool that grows by requests up to its limit, then not at all."""
    size = frame.level * frame.random.uniform(0.1, 0.8)
    full_at = frame.span * frame.random.uniform(0.05, 0.4)
    return size * np.minimum(1.0, frame.t / full_at)


def steps(frame: Frame) -> Floats:
    """One or two changes of configuration."""
    out = np.zeros_like(frame.t)
    for _ in range(frame.random.integers(1, 3)):
        at = frame.span * frame.random.uniform(0.1, 0.9)
        out += (
            frame.level * frame.random.uniform(0.05, 0.5) * frame.random.choice([1, 1, -0.5]) * (frame.t > at)
        )
    return out


def load_cycle(frame: Frame) -> Floats:
    return frame.level * frame.random.uniform(0.05, 0.4) * cycle(frame)


def sawtooth(frame: Frame) -> Floats:
    """A collector that frees every few minutes or hours, always down to the same floor."""
    period = np.exp(frame.random.uniform(np.log(300), np.log(6 * HOUR_S)))
    phase = (frame.t / period + frame.random.random()) % 1
    return frame.level * frame.random.uniform(0.05, 0.6) * phase


def page_cache(frame: Frame) -> Floats:
    """Grows quickly with use and is taken back at random moments, never below a floor."""
    out = np.empty_like(frame.t)
    held, limit = 0.0, frame.level * frame.random.uniform(0.1, 0.5)
    step = limit / (frame.t.size * frame.random.uniform(0.02, 0.08))
    for index in range(frame.t.size):
        held = min(limit, held + step * frame.random.random())
        if frame.random.random() < 1 / 200:
            held *= frame.random.uniform(0, 0.6)
        out[index] = held
    return out


def linear(frame: Frame) -> Floats:
    return frame.growth() * frame.t / frame.span


def linear_with_load(frame: Frame) -> Floats:
    return linear(frame) + load_cycle(frame)


def late_onset(frame: Frame) -> Floats:
    """Starts in the middle of the window, with a new version of a client, say."""
    at = frame.span * frame.random.uniform(0.15, 0.55)
    return frame.growth() * np.maximum(0, frame.t - at) / (frame.span - at)


def per_request(frame: Frame) -> Floats:
    """So many bytes a request (vllm#52089: 1.4 to 2.3 KB)."""
    done = np.cumsum(frame.rate)
    return frame.growth() * done / done[-1]


def rising_sawtooth(frame: Frame) -> Floats:
    return linear(frame) + sawtooth(frame)


def plateau_then_leak(frame: Frame) -> Floats:
    return plateau(frame) + frame.level * frame.random.uniform(0.25, 1.5) * frame.t / frame.span


def in_chunks(frame: Frame) -> Floats:
    """A leak that shows only when the allocator takes its next arena."""
    growth = max(frame.growth(), 0.2 * frame.level)
    chunks = frame.random.integers(8, 40)
    return growth * np.floor(frame.t / frame.span * chunks + frame.random.random()) / chunks


Shape = Callable[[Frame], Floats]
WITHOUT: tuple[Shape, ...] = (
    flat,
    wandering,
    plateau,
    bounded_fill,
    steps,
    load_cycle,
    sawtooth,
    page_cache,
)
WITH: tuple[Shape, ...] = (
    linear,
    linear_with_load,
    late_onset,
    per_request,
    rising_sawtooth,
    plateau_then_leak,
    in_chunks,
)


def draw(shape: Shape, seed: int) -> Labelled:
    """One series of this kind; equal for equal seeds."""
    random = np.random.default_rng([seed, (*WITHOUT, *WITH).index(shape)])
    span = DAY_S * random.uniform(1.5, 7)
    t = np.arange(0, span, random.choice([60.0, 120.0, 300.0]))
    t = t + random.uniform(0, 5, t.size)  # samplers are late
    day = 1 + random.uniform(0.2, 0.9) * np.sin(2 * np.pi * (t / DAY_S + random.random()))
    rate = random.uniform(0.05, 20) * day * random.uniform(0.8, 1.2, t.size)
    frame = Frame(random, t, GIB * random.uniform(0.2, 20), span, rate)
    signal = shape(frame)
    counted = shape is per_request or random.random() < 0.6
    leaks = shape in WITH
    return Labelled(
        kind=shape.__name__,
        leaks=leaks,
        t_s=t,
        bytes_=np.maximum(0, frame.level + signal + frame.noise()),
        requests=np.cumsum(rate * np.gradient(t)) if counted else None,
        slope_bytes_per_s=float((signal[-1] - signal[t.size // 2]) / (t[-1] - t[t.size // 2]))
        if leaks
        else 0.0,
    )


def labelled_set(per_kind: int, seed: int) -> Iterator[Labelled]:
    """`per_kind` series of each kind."""
    for shape in (*WITHOUT, *WITH):
        for index in range(per_kind):
            yield draw(shape, seed * 10_000 + index)
