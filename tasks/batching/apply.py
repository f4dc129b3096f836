"""Run the searches: measure what the plan asks for until it decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from tasks.batching.judging import summarise
from tasks.batching.memory_share import smaller_share
from tasks.batching.models import (
    BatchingRequest,
    BatchingResult,
    Decision,
    Limits,
    ProbeRequest,
    Run,
    SizeFigures,
    SteppedDecision,
    SteppedRun,
    Steps,
    StepSpace,
)
from tasks.batching.plan import next_step
from tasks.batching.report import words
from tasks.batching.steps.describe import describe, sum_up
from tasks.batching.steps.plan import next_stepped
from tasks.batching.steps.trials import sort_trials
from tasks.core.cancellation import current
from tasks.core.progress import say
from tasks.core.progress import step as tell_step
from tasks.core.verdicts import ChoiceVerdict, StageName

_OWN_STEPS = Steps()

_NEARLY = 0.95
"""The progress that is shown while the search continues: how long it takes is only known at its end."""


class Probe(Protocol):
    """Measures one size."""

    def measure(self, batch: int, runs: int) -> Sequence[Run]:
        """Up to `runs` measurements, in a fresh process; fewer when one was out of memory or failed."""


class ServingBench(Protocol):
    """Where a candidate is served and loaded."""

    def probe(self, request: ProbeRequest) -> Sequence[Run]:
        """Serve as configured, warm up, and measure. Fewer runs when one was out of memory or failed."""


def search(
    probe: Probe, limits: Limits, prior: int | None = None, answers: str = "tokens"
) -> tuple[Decision, list[Run]]:
    """Measure until there is a decision. Returns it with all runs. `answers` are what throughput counts."""
    history: list[Run] = []
    while True:
        current().check()
        step = next_step(history, limits, prior)
        if isinstance(step, Decision):
            return step, history
        say(StageName.BATCHING, f"measuring batch {step.batch}")
        runs = list(probe.measure(step.batch, step.runs))
        history += runs
        _tell(step.batch, step.runs, runs, _share(history, limits), answers=answers)


_MOST_SHARES = 3
"""Smaller shares of the GPUs' memory that are tried: an engine that holds too much after these holds it anyway."""


class ServedProbe:
    """A probe that serves a candidate, as configured but for the size, the steps, and what the engine says itself.

    What it fits to the GPUs at a size is kept for further runs of that size, which then serve as the release will.
    Where it finds less memory than it was to take, or holds more, `config` has it take less from then on.
    """

    def __init__(self, request: BatchingRequest, bench: ServingBench) -> None:
        self.config = request.config
        self._request = request
        self._bench = bench
        self._layers: dict[tuple[Steps, int], int] = {}
        self._fits = False
        self._shares = 0

    def measure(self, batch: int, runs: int, steps: Steps = _OWN_STEPS) -> Sequence[Run]:
        """As `Probe` says, with the engine's own steps or others."""
        limit = self._request.limits.memory_bytes
        found = self._probe(batch, runs, steps)
        while not self._fits and self.config.takes_a_share and self._shares < _MOST_SHARES:
            self._fits = any(run.answered and (run.peak_bytes or 0) <= limit for run in found)
            share = None if self._fits else smaller_share(self.config.memory_fraction, found, limit)
            if share is None:
                break
            self._shares += 1
            say(StageName.BATCHING, f"once more, with {share:.0%} of the GPUs' memory")
            self.config = self.config.model_copy(update={"memory_fraction": share})
            self._layers.clear()
            found = self._probe(batch, runs, steps)
        return found

    def _probe(self, batch: int, runs: int, steps: Steps) -> Sequence[Run]:
        asked = self._request
        config = self.config.model_copy(update={"batch": batch, **steps.model_dump()})
        if (layers := self._layers.get((steps, batch))) is not None:
            config = config.model_copy(update={"gpu_layers": layers})
        found = self._bench.probe(
            ProbeRequest(
                model_file=asked.model_file,
                config=config,
                log=asked.model_file.with_name("engine.log"),
                output_tokens=asked.output_tokens,
                load=asked.load,
                runs=runs,
            )
        )
        for run in found:
            if run.gpu_layers is not None:
                self._layers[steps, batch] = run.gpu_layers
        return found


def find_batch(request: BatchingRequest, bench: ServingBench, prior: int | None) -> BatchingResult:
    """The batch size for a candidate, and if there are several, the steps to serve it with."""
    probe = ServedProbe(request, bench)
    if request.steps is not None:
        return _find_with_steps(request, request.steps, probe, prior)
    decision, history = search(probe, request.limits, prior, request.config.answers)
    sizes = summarise(history, request.limits)
    return _result(request.limits, probe, decision, sizes, history, prior)


def _find_with_steps(
    request: BatchingRequest, space: StepSpace, probe: ServedProbe, prior: int | None
) -> BatchingResult:
    history: list[SteppedRun] = []
    while True:
        current().check()
        step = next_stepped(history, space, prior)
        if isinstance(step, SteppedDecision):
            break
        where = "" if step.steps.are_default else f"{describe(step.steps)}, "
        say(StageName.BATCHING, f"measuring {where}batch {step.batch}")
        runs = list(probe.measure(step.batch, step.runs, step.steps))
        history += [SteppedRun(steps=step.steps, run=run) for run in runs]
        share = _share([one.run for one in history if one.steps == step.steps], space.limits)
        _tell(step.batch, step.runs, runs, share, where)
    trials = sort_trials(history, space)
    shown = next((one for one in trials if one.steps == step.steps), trials[0])
    result = _result(
        shown.limits,
        probe,
        Decision(batch=step.batch, reason=step.reason),
        shown.sizes,
        [one.run for one in history],
        prior,
        shown.steps,
    )
    figures = [sum_up(trial, chosen=trial.steps == step.steps) for trial in trials]
    return result.model_copy(update={"steps": tuple(figures)}) if len(trials) > 1 else result


def _result(
    limits: Limits,
    probe: ServedProbe,
    decision: Decision,
    sizes: Mapping[int, SizeFigures],
    history: Sequence[Run],
    prior: int | None,
    steps: Steps = _OWN_STEPS,
) -> BatchingResult:
    chosen = sizes[decision.batch] if decision.batch else None
    config = probe.config.model_copy(
        update={"batch": decision.batch or 1, **steps.model_dump()}
        | ({} if chosen is None or chosen.gpu_layers is None else {"gpu_layers": chosen.gpu_layers})
    )
    return BatchingResult(
        verdict=ChoiceVerdict.CHOSEN if chosen else ChoiceVerdict.NONE,
        reason=decision.reason,
        batch=decision.batch,
        config=config,
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


def _tell(
    batch: int, wanted: int, runs: Sequence[Run], share: float, where: str = "", answers: str = "tokens"
) -> None:
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
            word = f"{run.throughput or 0:.0f} {answers}/s, {latency}{behind}"
        again = f" (run {len(runs)} of {wanted})" if wanted > 1 else ""
        line = f"{where}batch {batch}{again}: {word}"
        say(StageName.BATCHING, line)
        tell_step(share, line)
