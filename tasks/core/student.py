"""Student's distribution: the quantiles that intervals of few measurements are made with. Pure."""

from __future__ import annotations

_QUANTILES = {
    1: (6.314, 12.706), 2: (2.920, 4.303), 3: (2.353, 3.182), 4: (2.132, 2.776), 5: (2.015, 2.571),
    6: (1.943, 2.447), 7: (1.895, 2.365), 8: (1.860, 2.306), 10: (1.812, 2.228), 12: (1.782, 2.179),
    15: (1.753, 2.131), 20: (1.725, 2.086), 25: (1.708, 2.060), 30: (1.697, 2.042),
}  # fmt: skip
"""95th and 97.5th percentiles by degrees of freedom: for one-sided and two-sided intervals of 95 %."""


def one_sided_95(freedom: int) -> float:
    """The 95th percentile; between two rows of the table the larger one. Needs one degree of freedom."""
    return _row(freedom)[0]


def two_sided_95(freedom: int) -> float:
    """The 97.5th percentile, likewise."""
    return _row(freedom)[1]


def _row(freedom: int) -> tuple[float, float]:
    return _QUANTILES[max(known for known in _QUANTILES if known <= freedom)]
