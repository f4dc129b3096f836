"""Structural floor regression: the trend of a series' floor after load and structure are explained. Pure.

A plain trend test would call a filling cache or a change of configuration a leak. So the floor is fitted with each of
those explanations, and the Bayesian information criterion, with three times its usual penalty, chooses one. The trend
that remains is the leak's.
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
_NOTHING = 1e-12
"""A sum of squares below this is rounding: the base explains the column completely."""


@dataclass(frozen=True)
class Floor:
    """Time buckets: their middle (s), their floor (bytes) and the load (requests/s, None: not counted)."""

    t: Floats
    y: Floats
    load: Floats | None


@dataclass(frozen=True)
class Trend:
    """The chosen explanation. `cleaned` is the floor without load and structure; `onset` the share of the
    window after which the trend begins."""

    structure: Structure
    slope: float
    error: float
    onset: float
    cleaned: Floats


def floor_of(t: Floats, y: Floats, requests: Floats | None) -> Floor | None:
    """The 10th percentile of each of 48 time buckets after the warm-up; None for too little data.

    `t` ascends; all values are finite. Buckets without samples are omitted.
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
    """Requests per second in each bucket; None if it is the same throughout."""
    rates = []
    for low, high in filled:
        before = max(0, low - 1)
        passed = t[high - 1] - t[before]
        rates.append((requests[high - 1] - requests[before]) / passed if passed > 0 else 0.0)
    rate = np.array(rates)
    return rate if np.ptp(rate) > 1e-9 * max(1.0, float(np.abs(rate).max())) else None


def trend_of(floor: Floor) -> Trend:
    """The trend under the explanation that fits the data best."""
    u = (floor.t - floor.t[0]) / (floor.t[-1] - floor.t[0])
    scale = float(np.abs(floor.y).max()) or 1.0
    y = floor.y / scale
    common = [np.ones_like(u)]
    if floor.load is not None:
        common.append(floor.load / np.abs(floor.load).max())
    explanations = list(_explanations(u, y, common))
    scores = [_criterion(found.residual, u.size, found.parameters) for found in explanations]
    best = explanations[int(np.argmin(scores))]
    beta, *_ = np.linalg.lstsq(best.design, y, rcond=None)
    error = _hac_error(best.design, y - best.design @ beta)
    per_second = scale / (floor.t[-1] - floor.t[0])
    cleaned = y - best.design @ beta + best.design[:, 1] * beta[1]
    return Trend(best.structure, float(beta[1]) * per_second, error * per_second, best.onset, cleaned * scale)


@dataclass(frozen=True)
class Explanation:
    """The best design (buckets x columns; the trend is column 1) of one structure, the remaining sum of
    squares, and its number of parameters. A position that was searched for counts as one."""

    structure: Structure
    onset: float
    design: Floats
    residual: float
    parameters: int


def _explanations(u: Floats, y: Floats, common: list[Floats]) -> Iterator[Explanation]:
    base = np.stack([common[0], u, *common[1:]], axis=1)
    size = base.shape[1]
    fit = _Fit(base, y)
    yield Explanation("straight", 0.0, base, fit.squares, size)
    curves = np.stack(
        [*(np.exp(-u / tau) for tau in TAUS), *(np.minimum(u, full) for full in ONSETS)], axis=1
    )
    pick, residual = fit.with_one(curves)
    yield Explanation("saturating", 0.0, np.column_stack([base, curves[:, pick]]), residual, size + 2)
    after = (np.arange(u.size)[:, None] >= np.arange(2, u.size - 1)[None, :]).astype(float)
    pick, residual = fit.with_one(after)
    yield Explanation("steps", 0.0, np.column_stack([base, after[:, pick]]), residual, size + 2)
    first, second, residual = fit.with_two(after)
    design = np.column_stack([base, after[:, [first, second]]])
    yield Explanation("steps", 0.0, design, residual, size + 4)
    ramps = np.maximum(0.0, u[:, None] - ONSETS[None, :])
    pick, residual = _Fit(np.stack(common, axis=1), y).with_one(ramps)
    ramp = np.stack([common[0], ramps[:, pick], *common[1:]], axis=1)
    yield Explanation("onset", float(ONSETS[pick]), ramp, residual, size + 1)


class _Fit:
    """Least squares of `y` on `base`, and what remains after one or two more columns.

    What the base explains is removed from `y` and from each column once (Frisch, Waugh and Lovell); the rest follows
    from inner products, so all pairs of columns are tried in one step.
    """

    def __init__(self, base: Floats, y: Floats) -> None:
        self._q, _ = np.linalg.qr(base)
        self._left = self._without_base(y)
        self.squares = float(self._left @ self._left)

    def with_one(self, columns: Floats) -> tuple[int, float]:
        """The column that leaves the smallest sum of squares, and that sum."""
        columns = self._without_base(columns)
        size, shared = (columns**2).sum(axis=0), self._left @ columns
        explained = np.where(size > _NOTHING, shared**2 / np.maximum(size, _NOTHING), 0.0)
        pick = int(explained.argmax())
        return pick, max(0.0, self.squares - float(explained[pick]))

    def with_two(self, columns: Floats) -> tuple[int, int, float]:
        """The two columns, not adjacent, that leave the smallest sum of squares, and that sum."""
        columns = self._without_base(columns)
        gram, shared = columns.T @ columns, self._left @ columns
        size = np.diag(gram)
        explained = shared[:, None] ** 2 * size[None, :] + shared[None, :] ** 2 * size[:, None]
        explained -= 2 * shared[:, None] * shared[None, :] * gram
        determinant = size[:, None] * size[None, :] - gram**2
        explained = np.where(determinant > _NOTHING, explained / np.maximum(determinant, _NOTHING), 0.0)
        pairs = np.triu_indices(size.size, k=2)
        pick = int(explained[pairs].argmax())
        first, second = int(pairs[0][pick]), int(pairs[1][pick])
        return first, second, max(0.0, self.squares - float(explained[first, second]))

    def _without_base(self, values: Floats) -> Floats:
        left: Floats = values - self._q @ (self._q.T @ values)
        return left


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
