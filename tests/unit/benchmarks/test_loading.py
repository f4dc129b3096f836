"""What the loading benchmark makes of its samples."""

from __future__ import annotations

from typing import Any

from benchmarks.loading import (
    GIVEN_BACK,
    KEPT,
    best_of_fio,
    bounds,
    figure,
    ratio,
    summary,
)


def test_ratios_are_of_medians_and_of_pairs() -> None:
    assert ratio([1.0, 2.0, 9.0], [2.0, 1.0, 3.0]) == {"of_medians": 1.0, "median_of_pairs": 2.0}


def starts(alone: float, small: float, huge: float) -> dict[str, Any]:
    return summary({"alone": [alone], "prefetched, small": [small], "prefetched, huge": [huge]})


ENGINE = {
    "bytes": 2e9,
    "seconds": {KEPT: starts(7.0, 6.0, 2.5), GIVEN_BACK: starts(7.0, 6.5, 8.0)},
    "warm": summary({"alone": [0.5]}),
}
GB_S = {
    "fio 1 MiB x 32": [1.0, 1.0],
    "fio 4 MiB x 4": [1.0, 2.0],
    "fio 4 MiB x 4 huge": [2.5, 2.4],
}


def document(prefetch_s: float, streamer_golden: bool) -> dict[str, Any]:
    return {
        "disk_and_prefetch": {
            "ratios": {
                "the prefetch with small pages": ratio([1.9], [2.0]),
                "the prefetch with huge pages": ratio([1.8], [2.0]),
            }
        },
        "engine_start_to_first_completion": ENGINE,
        "loaders": {
            "by": {
                "prefetch": {"median_s": prefetch_s, "golden": True},
                "fastsafetensors": {"median_s": 3.0, "golden": True},
                "runai_streamer": {"median_s": 4.0, "golden": streamer_golden},
            }
        },
    }


def test_the_best_of_fio_is_looked_for_among_the_same_pages() -> None:
    assert best_of_fio(GB_S, huge=False) == "fio 4 MiB x 4"
    assert best_of_fio(GB_S, huge=True) == "fio 4 MiB x 4 huge"


def test_bounds_hold_or_not() -> None:
    """A virtual machine that gives memory back is served small pages there."""
    assert list(bounds(document(2.0, True)).values()) == [True, False, True, True, True, True]
    assert list(bounds(document(3.5, False)).values()) == [True, False, True, True, False, False]


def test_the_figure_is_an_image() -> None:
    shown = figure(ENGINE, {"bytes": 2e9, "by": {"mmap": {"median_s": 2.0}}})
    assert shown.startswith("<svg")
    assert "given back, huge" in shown
