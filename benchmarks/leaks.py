"""How well the leak check tells leaks from what only looks like one. Writes JSON.

`python -m benchmarks.leaks [--per-kind N] [--seed N] [--out FILE]`

Series are drawn (`tests/support/memory_series.py`) with a seed that no threshold was chosen on. Beside the check,
on the same series: a least-squares slope, and the ratio of the last tenth to the first. A leak counts as found when
it is `confirmed`. `nightly` asks more: the check runs every day of the series, and one `confirmed` on any of them is
an alarm. A cache that takes more than a day to fill is one until it is full.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.core.verdicts import LeakVerdict
from tasks.leaks import plan
from tasks.leaks.models import LeakRequest, LeakResult, Series

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from memory_series import DAY_S, Labelled, labelled_set  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-kind", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7041)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "leaks.json")
    arguments = parser.parse_args()
    figures = measure(list(labelled_set(arguments.per_kind, arguments.seed)))
    figures |= {"per_kind": arguments.per_kind, "seed": arguments.seed}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def measure(drawn: list[Labelled]) -> dict[str, Any]:
    """Scores of each method, verdicts by kind, and errors of slope and forecast where a leak was found."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    found: dict[str, list[bool]] = defaultdict(list)
    slopes, forecasts, cpu_s = [], [], []
    for series in drawn:
        limit = int(2 * series.bytes_[-1])
        start = time.process_time()
        result = judge(series, limit)
        cpu_s.append(time.process_time() - start)
        kinds[series.kind][result.verdict] += 1
        confirmed = result.verdict is LeakVerdict.CONFIRMED
        found["structural floor regression"].append(confirmed)
        found["structural floor regression, nightly"].append(confirmed or any(nightly(series, limit)))
        found["least-squares slope"].append(slope_rises(series))
        found["last tenth over first"].append(ratio_rises(series))
        if confirmed and series.leaks:
            slopes.append(abs(result.slope_bytes_per_s / series.slope_bytes_per_s - 1))
            forecasts.append(forecast_error(series, result, limit))
    truth = [series.leaks for series in drawn]
    return {
        "series": len(drawn),
        "methods": {name: score(answers, truth) for name, answers in found.items()},
        "kinds": {name: dict(count) for name, count in kinds.items()},
        "slope_error": quantiles(slopes),
        "forecast_error": quantiles(forecasts),
        "cpu_s": quantiles(cpu_s),
    }


def nightly(series: Labelled, limit: int) -> Iterator[bool]:
    """Whether each daily check before the last one confirms a leak."""
    for end in np.arange(series.t_s[0] + DAY_S, series.t_s[-1], DAY_S):
        count = int(np.searchsorted(series.t_s, end, side="right"))
        yield judge(series, limit, count).verdict is LeakVerdict.CONFIRMED


def judge(series: Labelled, limit: int, count: int | None = None) -> LeakResult:
    """The verdict on the first `count` samples."""
    requests = None if series.requests is None else tuple(series.requests[:count])
    run = Series(t_s=tuple(series.t_s[:count]), bytes_=tuple(series.bytes_[:count]), requests=requests)
    return plan.judge([run], LeakRequest(limit_bytes=limit))


def slope_rises(series: Labelled) -> bool:
    """A slope that adds 5 % of the level, three (uncorrelated) standard errors from zero."""
    t = series.t_s - series.t_s[0]
    (slope, _), covariance = np.polyfit(t, series.bytes_, 1, cov=True)
    grows = slope * t[-1] > 0.05 * np.median(series.bytes_)
    return bool(grows and slope > 3 * np.sqrt(covariance[0, 0]))


def ratio_rises(series: Labelled) -> bool:
    """The last tenth of the samples is 5 % above the first."""
    tenth = series.bytes_.size // 10
    return bool(series.bytes_[-tenth:].mean() > 1.05 * series.bytes_[:tenth].mean())


def forecast_error(series: Labelled, result: LeakResult, limit: int) -> float:
    """Relative to the time that was left, by the true slope."""
    left = (limit - float(np.median(series.bytes_[-30:]))) / series.slope_bytes_per_s
    assert result.oom_at_s is not None
    return abs(result.oom_at_s - series.t_s[-1] - left) / left


def score(answers: list[bool], truth: list[bool]) -> dict[str, float]:
    count = Counter(zip(answers, truth, strict=True))
    hits, false_alarms, misses = count[True, True], count[True, False], count[False, True]
    return {
        "precision": round(hits / max(1, hits + false_alarms), 3),
        "recall": round(hits / max(1, hits + misses), 3),
        "f1": round(2 * hits / max(1, 2 * hits + false_alarms + misses), 3),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    return {name: round(float(np.quantile(values, q)), 4) for name, q in (("median", 0.5), ("p90", 0.9))}


if __name__ == "__main__":
    main()
