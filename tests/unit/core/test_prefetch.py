"""What is worth reading ahead of an engine."""

from __future__ import annotations

from inline_snapshot import snapshot

from tasks.core.prefetch import why_not


def test_what_is_missing_must_fit_into_memory_with_a_tenth_to_spare() -> None:
    assert why_not(10_000_000_000, 12_000_000_000) is None
    assert why_not(10_000_000_000, 11_000_000_000) == snapshot(
        "10.0 GB do not fit into the 9.9 GB of usable memory: the engine reads the files by itself"
    )
    assert why_not(0, 0) is None
