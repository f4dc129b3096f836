"""Structural floor regression: the trend of a series' floor, once load and structure are explained. Pure.

Trend tests alone call a filling cache and a change of configuration a leak; so the floor is fitted with each of
those explanations, and the Bayesian information criterion, with three times its usual penalty, says which one
the data asks for. The trend that remains is the leak's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tasks.leaks.models import Structure

Floats = np.ndarray[Any, np.dtype[np.float64]]

BUCKETS = 48
QUANTILE = 0.10
WARM_UP = 0.05
MIN_SAMPLES = 40
MIN_BUCKETS = 24
PENALTY = 3.0
TAUS = (0.02, 0.04, 0.08, 0.15, 0.25, 0.4)
ONSETS = np.linspace(0.1, 0.75, 14)
HAC_LAG = 4


@dataclass(frozen=True)
class Floor:
    """Time buckets: their middle (s), the floor in them (bytes) and the load (requests/s, None: not counted)."""

    t: Floats
    y: Floats
    load: Floats | None


@dataclass(frozen=True)
class Trend:
    """The chosen explanation. `cleaned` is the floor without load and structure; `onset` the share of the
    window after which the trend runs."""

    structure: Structure
    slope: float
    error: float
    onset: float
    cleaned: Floats


def floor_of(t: Floats, y: Floats, requests: Floats | None) -> Floor | None:
    """The 10th percentile of each of 48 time buckets after the warm-up; None for too little data.

    `t` ascends; all values are finite. Buckets without samples are left out.
    """
    if t.size < MIN_SAMPLES or t[-1] <= t[0]:
        return None
    start = t[0] + WARM_UP * (t[-1] - t[0])
    edges = np.linspace(start, t[-1], BUCKETS + 1)
    cuts = np.searchsorted(t, edges)
    cuts[-1] = t.size
    filled = [(low, high) for low, high in pairwise(cuts) if high > low]
    middle = np.array([t[low:high].mean() for low, high in filled])
    if len(filled) < MIN_BUCKETS or middle[-1] <= middle[0]:
        return None
    floor = np.array([np.quantile(y[low:high], QUANTILE) for low, high in filled])
    return Floor(middle, floor, None if requests is None else _rate(t, requests, filled))


def _rate(t: Floats, requests: Floats, filled: list[tuple[int, int]]) -> Floats | None:
    """Requests per second in each bucket; None where it is the same throughout."""
    rates = []
    for low, high in filled:
        before = max(0, low - 1)
        passed = t[high - 1] - t[before]
        rates.append((requests[high - 1] - requests[before]) / passed if passed > 0 else 0.0)
    rate = np.array(rates)
    return rate if np.ptp(rate) > 1e-9 * max(1.0, float(np.abs(rate).max())) else None


def trend_of(floor: Floor) -> Trend:
    """The trend under the explanation that the data asks for."""
    u = (floor.t - floor.t[0]) / (floor.t[-1] - floor.t[0])
    scale = float(np.abs(floor.y).max()) or 1.0
    y = floor.y / scale
    common = [np.ones_like(u)]
    if floor.load is not None:
        common.append(floor.load / np.abs(floor.load).max())
    best: tuple[float, Structure, float, Floats] | None = None
    for structure, onset, designs, parameters in _explanations(u, common):
        residual = _residuals(designs, y)
        pick = int(residual.argmin())
        score = _criterion(float(residual[pick]), u.size, parameters)
        if best is None or score < best[0]:
            best = (score, structure, onset, designs[pick])
    assert best is not None
    _, structure, onset, design = best
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = _hac_error(design, y - design @ beta)
    per_second = scale / (floor.t[-1] - floor.t[0])
    cleaned = y - design @ beta + design[:, 1] * beta[1]
    return Trend(structure, float(beta[1]) * per_second, error * per_second, onset, cleaned * scale)


def _explanations(u: Floats, common: list[Floats]) -> Iterator[tuple[Structure, float, Floats, int]]:
    """Stacks of design matrices (candidates x buckets x columns; the trend is column 1) and how many
    parameters each costs. A place that was searched for counts as one."""
    base = np.stack([common[0], u, *common[1:]], axis=1)
    size = base.shape[1]
    yield "straight", 0.0, base[None], size
    yield "saturating", 0.0, _with(base, [np.exp(-u / tau)[:, None] for tau in TAUS]), size + 2
    yield "saturating", 0.0, _with(base, [np.minimum(u, full)[:, None] for full in ONSETS]), size + 2
    after = (np.arange(u.size)[:, None] >= np.arange(2, u.size - 1)[None, :]).astype(float)
    one = [after[:, [index]] for index in range(after.shape[1])]
    yield "steps", 0.0, _with(base, one), size + 2
    first, second = np.triu_indices(after.shape[1], k=2)
    yield "steps", 0.0, _with(base, [after[:, [a, b]] for a, b in zip(first, second, strict=True)]), size + 4
    for onset in ONSETS:
        ramp = np.stack([common[0], np.maximum(0.0, u - onset), *common[1:]], axis=1)
        yield "onset", float(onset), ramp[None], size + 1


def _with(base: Floats, extras: list[Floats]) -> Floats:
    return np.stack([np.concatenate([base, extra], axis=1) for extra in extras])


def _residuals(designs: Floats, y: Floats) -> Floats:
    """Sum of squares left by each design."""
    q, _ = np.linalg.qr(designs)
    fitted = np.einsum("cbk,ck->cb", q, np.einsum("cbk,b->ck", q, y))
    squares: Floats = ((y - fitted) ** 2).sum(axis=1)
    return squares


def _criterion(residual: float, n: int, parameters: int) -> float:
    return n * float(np.log(max(residual, 1e-18) / n)) + PENALTY * parameters * float(np.log(n))


def _hac_error(design: Floats, residual: Floats) -> float:
    """Newey-West standard error of the trend (column 1)."""
    n, k = design.shape
    inverse = np.linalg.pinv(design.T @ design)
    moments = design * residual[:, None]
    middle = moments.T @ moments
    for lag in range(1, HAC_LAG + 1):
        cross = moments[lag:].T @ moments[:-lag]
        middle += (1 - lag / (HAC_LAG + 1)) * (cross + cross.T)
    variance = (inverse @ middle @ inverse)[1, 1] * n / max(1, n - k)
    return float(np.sqrt(max(variance, 0.0)))
