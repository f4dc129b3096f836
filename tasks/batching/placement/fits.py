"""Least squares with parameters that cannot be negative. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def fit_nonnegative(rows: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Parameters that bring `rows` nearest to `targets`, none of them below 0.

    The ones that would be negative are taken to be 0, the worst first. What one believes beforehand is given as rows
    as well. Few parameters and few rows: nothing here is made for many.
    """
    count = len(rows[0])
    free = list(range(count))
    while free:
        found = _solve(
            [[sum(row[i] * row[j] for row in rows) for j in free] for i in free],
            [sum(row[i] * target for row, target in zip(rows, targets, strict=True)) for i in free],
        )
        worst = min(range(len(free)), key=found.__getitem__)
        if found[worst] >= 0:
            values = dict(zip(free, found, strict=True))
            return [values.get(index, 0.0) for index in range(count)]
        free.pop(worst)
    return [0.0] * count


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with pivots; a parameter that nothing depends on is 0."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda index: abs(rows[index][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        if rows[column][column] == 0:
            rows[column][column] = 1.0
        for row in rows[column + 1 :]:
            share = row[column] / rows[column][column]
            for index in range(column, size + 1):
                row[index] -= share * rows[column][index]
    found = [0.0] * size
    for column in reversed(range(size)):
        rest = sum(rows[column][index] * found[index] for index in range(column + 1, size))
        found[column] = (rows[column][size] - rest) / rows[column][column]
    return found
