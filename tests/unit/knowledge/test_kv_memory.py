"""Memory at one budget of keys and values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.records import Number
from tasks.knowledge.kv_memory import memory_at


@given(
    weights=st.integers(10**6, 10**12),
    each=st.integers(10**3, 10**7),
    budgets=st.sets(st.integers(1, 10**6), min_size=2, max_size=8),
    tokens=st.integers(1, 2 * 10**6),
)
def test_memory_that_grows_by_the_token_is_found_anywhere(
    weights: int, each: int, budgets: set[int], tokens: int
) -> None:
    found = memory_at({budget: weights + each * budget for budget in budgets}, tokens)
    assert found is not None
    assert found.value == pytest.approx(weights + each * tokens, rel=1e-6)
    assert found.kind == ("measured" if tokens in budgets else "predicted")


def test_between_two_budgets_only_the_nearest_tell() -> None:
    """An engine that takes its memory in steps."""
    found = memory_at({1: 100, 10: 100, 20: 300, 100: 300}, 15)
    assert found == Number(value=200, unit="byte", kind="predicted")


@pytest.mark.parametrize(
    "peaks",
    [{}, {512: 10**9}, {512: 10**9, 1024: 10**9}, {512: 10**9, 1024: 9 * 10**8}],
    ids=["none", "one", "taken beforehand", "shrinking"],
)
def test_what_tells_no_line_is_a_gap(peaks: dict[int, int]) -> None:
    assert memory_at(peaks, 512) is None
    assert memory_at(peaks, 4096) is None


def test_a_line_below_nothing_is_a_gap() -> None:
    assert memory_at({1000: 10, 2000: 10**6}, 1) is None
