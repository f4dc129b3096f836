"""Run the searches: measure what the plan asks for until it decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tasks.batching.judging import summarise
from tasks.batching.models import (
    BatchingRequest,
    BatchingResult,
    Decision,
    Limits,
    PlacedDecision,
    PlacedRun,
    Run,
    SizeFigures,
    Space,
)
from tasks.batching.placement.plan import next_placed_step
from tasks.batching.placement.trials import sort_trials
from tasks.batching.placement.words import configure, describe, sum_up
from tasks.batching.plan import next_step
from tasks.batching.report import words
from tasks.core.cancellation import current
from tasks.core.progress import say
from tasks.core.progress import step as tell_step
from tasks.core.serving import ServingConfig
from tasks.core.spec import TuningLoad
from tasks.core.verdicts import ChoiceVerdict, StageName

_NEARLY = 0.95
"""The share at which a search that goes on is shown to be: when it ends is known at its end."""


class Probe(Protocol):
    """Measures one size."""

    def measure(self, batch: int, runs: int) -> Sequence[Run]:
        """Up to `runs` measurements, in a fresh process; fewer when one was out of memory or failed."""


class ServingBench(Protocol):
    """Where a candidate is served and loaded."""

    def probe(
        self,
        model_file: Path,
        config: ServingConfig,
        log: Path,
        *,
        output_tokens: int,
        runs: int,
        load: TuningLoad,
    ) -> Sequence[Run]:
        """Serve at `config`, warm up, and measure `runs` loads: as many clients as slots, or requests at a rate."""


def search(probe: Probe, limits: Limits, prior: int | None = None) -> tuple[Decision, list[Run]]:
    """Measure until there is a decision. Returns it with all runs."""
    history: list[Run] = []
    while True:
        current().check()
        step = next_step(history, limits, prior)
        if isinstance(step, Decision):
            return step, history
        say(StageName.BATCHING, f"measuring batch {step.batch}")
        runs = list(probe.measure(step.batch, step.runs))
        history += runs
        _tell(step.batch, step.runs, runs, _share(history, limits))


class ServedProbe:
    """A probe that serves a candidate, as configured but for the size."""

    def __init__(self, request: BatchingRequest, bench: ServingBench, config: ServingConfig) -> None:
        self._request = request
        self._bench = bench
        self._config = config

    def measure(self, batch: int, runs: int) -> Sequence[Run]:
        """As `Probe` says."""
        return self._bench.probe(
            self._request.model_file,
            self._config.model_copy(update={"batch": batch}),
            self._request.model_file.with_name("engine.log"),
            output_tokens=self._request.output_tokens,
            runs=runs,
            load=self._request.load,
        )


def find_batch(request: BatchingRequest, bench: ServingBench, prior: int | None) -> BatchingResult:
    """The batch size for a candidate, and where there are several, the placement to serve it at."""
    if request.space is not None:
        return _find_placed(request, request.space, bench, prior)
    decision, history = search(ServedProbe(request, bench, request.config), request.limits, prior)
    sizes = summarise(history, request.limits)
    return _result(request, request.config, request.limits, decision, sizes, history, prior)


def _find_placed(
    request: BatchingRequest, space: Space, bench: ServingBench, prior: int | None
) -> BatchingResult:
    history: list[PlacedRun] = []
    while True:
        current().check()
        step = next_placed_step(history, space, prior)
        if isinstance(step, PlacedDecision):
            break
        placed = ServedProbe(request, bench, configure(request.config, step.placement, space))
        where = f"{describe(step.placement, space)}, " if step.placement.told else ""
        say(StageName.BATCHING, f"measuring {where}batch {step.batch}")
        runs = list(placed.measure(step.batch, step.runs))
        history += [PlacedRun(placement=step.placement, run=run) for run in runs]
        share = _share([done.run for done in history if done.placement == step.placement], space.limits)
        _tell(step.batch, step.runs, runs, share, where)
    trials = sort_trials(history, space)
    # Where nothing will do, what is shown is the last place that was tried with the engine's own steps.
    places = [trial for trial in trials if not trial.placement.steps_told]
    shown = next((one for one in trials if one.placement == step.placement), places[-1] if places else None)
    result = _result(
        request,
        configure(request.config, shown.placement, space) if shown else request.config,
        shown.limits if shown else request.limits,
        Decision(batch=step.batch, reason=step.reason),
        dict(shown.sizes) if shown else {},
        [placed.run for placed in history],
        prior,
    )
    if not any(trial.placement.told for trial in trials):
        return result
    placements = [sum_up(trial, space, chosen=trial.placement == step.placement) for trial in trials]
    return result.model_copy(update={"placements": tuple(placements)})


def _result(
    request: BatchingRequest,
    config: ServingConfig,
    limits: Limits,
    decision: Decision,
    sizes: Mapping[int, SizeFigures],
    history: Sequence[Run],
    prior: int | None,
) -> BatchingResult:
    chosen = sizes[decision.batch] if decision.batch else None
    return BatchingResult(
        verdict=ChoiceVerdict.CHOSEN if chosen else ChoiceVerdict.NONE,
        reason=decision.reason,
        batch=decision.batch,
        config=config.model_copy(update={"batch": decision.batch or 1}),
        limits=limits,
        chosen=chosen,
        sizes=tuple(sizes.values()),
        oom_hits=sum(run.oom for run in history),
        prior=prior,
        log_tail=None if chosen else _last_words(history),
    )


def _last_words(history: Sequence[Run]) -> str | None:
    faults = (fault for run in reversed(history) if (fault := run.fault) is not None)
    return next((fault.log_tail for fault in faults if fault.log_tail), None)


def _share(history: Sequence[Run], limits: Limits) -> float:
    """How far a search is: sizes double up to the largest, then two are measured again. It may end before."""
    doublings = math.log2(limits.max_batch) + 1
    measured = len({run.batch for run in history})
    return min(_NEARLY, measured / (doublings + 2))


def _tell(batch: int, wanted: int, runs: Sequence[Run], share: float, where: str = "") -> None:
    for run in runs[-1:]:
        if (fault := run.fault) is not None:
            word = fault.line
        else:
            latency = ", ".join(
                f"{words(name)} {value:.1f} ms" for name, value in run.latency_ms.items() if "p50" not in name
            )
            if "ttft_p95" in run.latency_ms and "tpot_p95" not in run.latency_ms:
                latency += ", TPOT not measured"
            behind = ", saturated" if run.saturation and run.saturation.saturated else ""
            word = f"{run.throughput or 0:.0f} tokens/s, {latency}{behind}"
        again = f" (run {len(runs)} of {wanted})" if wanted > 1 else ""
        line = f"{where}batch {batch}{again}: {word}"
        say(StageName.BATCHING, line)
        tell_step(share, line)
