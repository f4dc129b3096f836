"""What the loading benchmark makes of its samples."""

from __future__ import annotations

from typing import Any

from benchmarks.loading import bounds, figure, ratio, summary


def test_ratios_are_of_medians_and_of_pairs() -> None:
    assert ratio([1.0, 2.0, 9.0], [2.0, 1.0, 3.0]) == {"of_medians": 1.0, "median_of_pairs": 2.0}


def document(prefetch_s: float, streamer_golden: bool) -> dict[str, Any]:
    return {
        "disk_and_prefetch": {
            "prefetch_to_best_of_fio_with_any_pages": ratio([1.8], [2.0]),
            "prefetch_to_best_of_fio_with_small_pages": ratio([1.9], [2.0]),
        },
        "engine_start_to_first_completion": {"seconds": summary({"alone": [7.0], "prefetched": [2.5]})},
        "loaders": {
            "by": {
                "prefetch": {"median_s": prefetch_s, "golden": True},
                "fastsafetensors": {"median_s": 3.0, "golden": True},
                "runai_streamer": {"median_s": 4.0, "golden": streamer_golden},
            }
        },
    }


def test_bounds_hold_or_not() -> None:
    assert list(bounds(document(2.0, True)).values()) == [False, True, True, True, True]
    assert list(bounds(document(3.5, False)).values()) == [False, True, True, False, False]


def test_the_figure_is_an_image() -> None:
    seconds = summary({"alone": [7.0], "prefetched": [2.5]})
    shown = figure({"bytes": 2e9, "seconds": seconds}, {"bytes": 2e9, "by": {"mmap": {"median_s": 2.0}}})
    assert shown.startswith("<svg")
    assert "start, prefetched" in shown
