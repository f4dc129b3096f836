"""Embeddings and scores in an engine's answers: read, and checked to be numbers that mean something. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tasks.core.errors import EngineError

EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"


def embeddings_in(answer: dict[str, Any], count: int, base_url: str) -> list[tuple[float, ...]]:
    """The vectors of `count` texts, in their order. Raises `EngineError` for anything else, and for a vector of zeros
    or with a value that is not a number."""
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = [tuple(float(value) for value in row["embedding"]) for row in rows]
        if [row["index"] for row in rows] != list(range(count)):
            raise ValueError(f"{len(rows)} of {count}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{base_url} did not return embeddings: {str(answer)[:200]}") from error
    if len({len(vector) for vector in vectors}) != 1:
        raise EngineError(f"{base_url} returned embeddings of different lengths")
    for vector in vectors:
        if not vector or not all(map(math.isfinite, vector)):
            raise EngineError(f"{base_url} returned an embedding with values that are not numbers")
        if not any(vector):
            raise EngineError(f"{base_url} returned an embedding of zeros")
    return vectors


def scores_in(answer: dict[str, Any], count: int, base_url: str) -> list[float]:
    """The scores of `count` documents, in the order in which they were given. Raises `EngineError` for anything
    else."""
    try:
        rows = sorted(answer["results"], key=lambda row: row["index"])
        scores = [float(row["relevance_score"]) for row in rows]
        if [row["index"] for row in rows] != list(range(count)):
            raise ValueError(f"{len(rows)} of {count}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{base_url} did not return scores: {str(answer)[:200]}") from error
    if not all(map(math.isfinite, scores)):
        raise EngineError(f"{base_url} returned scores that are not numbers")
    return scores


def describe_vectors(vectors: Sequence[Sequence[float]]) -> str:
    """The first of these vectors, in a line."""
    first = vectors[0]
    return f"{len(first)} numbers: {', '.join(f'{value:.4f}' for value in first[:3])}, …"


def describe_scores(scores: Sequence[float]) -> str:
    """These scores, in a line."""
    return f"scores {', '.join(f'{score:.4f}' for score in scores)}"
