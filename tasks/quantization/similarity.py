"""How near a candidate's embeddings or scores are to the baseline's, text by text. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations

from tasks.core.model_task import Task
from tasks.core.student import two_sided_95
from tasks.quantization.models import Estimate, Similarity

LEAST_TEXTS = 8
"""Fewer texts say nothing about quality."""

LEAST_QUERIES = 4
DOCUMENTS = 8
"""Documents that one query is put to."""

_MOST_TEXTS = 256
_TOKEN_BYTES = 4
_LEAST_CHARACTERS = 12


def passages(text: str, *, tokens: int, window: int) -> tuple[str, ...]:
    """The lines of a text that say something, together about `tokens` tokens, each within `window` tokens.

    A token has at least one character, so a line is cut after that many.
    """
    found: list[str] = []
    left = tokens * _TOKEN_BYTES
    for line in dict.fromkeys(one.strip()[:window] for one in text.splitlines()):
        if len(line) < _LEAST_CHARACTERS:
            continue
        if left <= 0 or len(found) == _MOST_TEXTS:
            break
        found.append(line)
        left -= len(line)
    return tuple(found)


def questions(texts: Sequence[str], *, window: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Queries with their documents: each text in turn, and those that follow it. Both together fit the window."""
    cut = max(1, window // 2)
    short = [text[:cut] for text in texts]
    pairs = []
    for start in range(0, len(short) - 1, DOCUMENTS):
        documents = tuple(dict.fromkeys(short[start + 1 : start + 1 + DOCUMENTS]))
        if len(documents) > 1:
            pairs.append((short[start], documents))
    return tuple(pairs)


def compare_rows(
    task: Task, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> Similarity | None:
    """The candidate's rows beside the baseline's: embeddings of texts, or scores of a query's documents.

    None if a value is not a number, or the two have different sizes.
    """
    if len(ours) != len(theirs) or any(
        len(one) != len(other) for one, other in zip(ours, theirs, strict=True)
    ):
        return None
    measure = cosine if task is Task.EMBED else same_order
    values = [measure(one, other) for one, other in zip(ours, theirs, strict=True)]
    if not values or not all(map(math.isfinite, values)):
        return None
    difference = None
    if task is Task.RERANK:
        pairs = [
            pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)
        ]
        difference = max(abs(our - their) for our, their in pairs)
    return Similarity(kept=mean_of(values), lowest=min(values), count=len(values), difference=difference)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors."""
    length = math.hypot(*one) * math.hypot(*other)
    return sum(our * their for our, their in zip(one, other, strict=True)) / length if length else math.nan


def same_order(one: Sequence[float], other: Sequence[float]) -> float:
    """The share of pairs of documents that both put in the same order."""
    pairs = list(combinations(range(len(one)), 2))
    agreed = sum(
        (one[first] - one[second]) * (other[first] - other[second]) > 0
        or (one[first] == one[second] and other[first] == other[second])
        for first, second in pairs
    )
    return agreed / len(pairs) if pairs else math.nan


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean of one value for each text, with Student's interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(value=mean, low=-math.inf, high=math.inf)
    half = two_sided_95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def reject_similarity(found: Similarity, tolerance: float) -> str | None:
    """Why a candidate misses the floor: the worse end of the interval must be within the tolerance."""
    if 1 - found.kept.low <= tolerance:
        return None
    what = "of the order of documents" if found.difference is not None else "of the embeddings' direction"
    return (
        f"keeps {found.kept.value:.2%} {what} ({found.kept.low:.2%} at the worse end of its interval); "
        f"{tolerance:.2%} may be lost"
    )
