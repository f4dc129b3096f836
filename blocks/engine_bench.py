"""A workbench for candidates: makes them, serves them, scores text and puts load on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from blocks.engine_api import EngineApi
from blocks.engine_process import RunningEngine, serve
from blocks.exercises import answer_exercises
from blocks.forced_tokens import Token, score_windows, tokenize
from blocks.gguf_maker import compare_gguf, make_gguf
from blocks.gpu_watch import GpuUse, watch_gpus
from blocks.load_client import LoadClient
from blocks.process import last_lines
from blocks.process_memory import command_pids, gpu_bytes, peak_host_bytes
from tasks.batching.models import Run
from tasks.batching.saturation import Saturation, judge_waits
from tasks.core.errors import CommandError, EngineError, EngineHungError, EngineStartError
from tasks.core.load import Load, LoadFigures, OpenLoad, Wait, load_for, load_for_decoding, open_load_for
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.core.serving import ServingConfig
from tasks.core.spec import CandidateFormat, TuningLoad
from tasks.engines.base import Engine
from tasks.engines.failures import failure_of
from tasks.quantization.models import Exercise, Score, Trial

_NAME = "slipway-tuning"
_SPEED_RUNS = 3
_SPEED_TOKENS = 96
_WARM_UP_S = 0.2
_SCORING_S = 600.0
"""Longest wait for the next byte while text is scored: an answer comes once all of its tokens are done."""
_CLOSED = TuningLoad()
STOCK = " ".join(
    f"{first}{second}"
    for first in ("the ", "a ", "one ", "my ")
    for second in (
        "ship lies at the quay",
        "crane lifts a crate",
        "pilot reads the tide",
        "rope holds fast",
        "wind turns north",
        "harbour is closed at night",
        "cargo was weighed twice",
        "light shows green",
        "tug pulls 42 barges away",
    )
)
"""Text whose tokens prompts are drawn from at random: what they say does not matter, only that they differ."""


class LoadSource(Protocol):
    """What puts load on one engine: the built-in client, or another in its place."""

    def run(self, load: Load) -> LoadFigures:
        """As `LoadClient.run`."""

    def run_open(self, load: OpenLoad) -> tuple[LoadFigures, tuple[Wait, ...]]:
        """As `LoadClient.run_open`."""


LoadBy = Callable[[str, str], LoadSource]


@dataclass(frozen=True)
class EngineBench:
    """One engine in one environment. With layers on GPUs, memory is measured there instead of on the host.

    An engine under load that sends no byte for `silence_s` hangs; one that broke off is given `dying_s` to be dead.
    `load_by` makes what puts load on a batch size, from the engine's address and the model's name; the built-in
    client does so where there is none, and warms up.
    """

    engine: Engine
    python: Path
    threads: int
    gpu_layers: int = 0
    start_timeout_s: float = 120.0
    silence_s: float = 120.0
    dying_s: float = 2.0
    scoring_s: float = _SCORING_S
    load_by: LoadBy | None = None
    prefetch: Prefetch = no_prefetch

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        """As the quantization stage's `CandidateBench` says."""
        make_gguf(self.python, worker, model_dir, form, out)

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        """As the quantization stage's `CandidateBench` says."""
        return compare_gguf(self.python, worker, baseline, candidate)

    def try_candidate(
        self,
        model: Path,
        log: Path,
        *,
        text: str | None,
        tokens: int,
        window: int,
        slots: int,
        exercises: Sequence[Exercise] = (),
    ) -> Trial:
        """As the quantization stage's `CandidateBench` says."""
        config = ServingConfig(
            served_name=_NAME,
            batch=slots,
            context=window + 8,
            threads=self.threads,
            gpu_layers=self.gpu_layers,
        )
        with (
            self._serve(model, config, log) as served,
            EngineApi(served.base_url, timeout_s=self.scoring_s) as api,
            watching(served),
        ):
            if self.gpu_layers:
                check_gpu(served)
            scores = _score(api, text, tokens, window, slots) if text is not None else []
            answers = answer_exercises(api, exercises, window=window, slots=slots) if exercises else []
            client = LoadClient(served.base_url, _NAME, _token_pool(api))
            speeds = decoding_speeds(client, window, silence_s=self.silence_s)
        return Trial(scores=tuple(scores), answers=tuple(answers), tokens_per_s=speeds)

    def probe(
        self,
        model_file: Path,
        config: ServingConfig,
        log: Path,
        *,
        output_tokens: int,
        runs: int,
        load: TuningLoad = _CLOSED,
    ) -> Sequence[Run]:
        """As the batching stage's `ServingBench` says."""
        done: list[Run] = []
        try:
            with self._serve(model_file, config, log) as served, watching(served):
                self._load(served, config, output_tokens, runs, load, done)
        except EngineError as error:
            said = last_lines(log.read_text(errors="replace"))
            done.append(Run.failing(config.batch, failure_of(error, log_tail=said)))
        return done

    def _load(
        self,
        served: RunningEngine,
        config: ServingConfig,
        output_tokens: int,
        runs: int,
        wanted: TuningLoad,
        done: list[Run],
    ) -> None:
        with EngineApi(served.base_url, timeout_s=self.silence_s) as api:
            client = LoadClient(served.base_url, config.served_name, _token_pool(api))
        generator = self.load_by(served.base_url, config.served_name) if self.load_by else client
        if self.gpu_layers:
            check_gpu(served)
        load = load_for(clients=config.batch, context=config.context, output_tokens=output_tokens).model_copy(
            update={"silence_s": self.silence_s}
        )
        client.run(load.model_copy(update={"seed": -1, "min_s": _WARM_UP_S, "min_requests": 1}))
        for seed in range(runs):
            with self._watch(served) as gpus:
                if wanted.rate is None:
                    figures, saturation = generator.run(load.model_copy(update={"seed": seed})), None
                else:
                    figures, waits = generator.run_open(
                        self._open_load(wanted, wanted.rate, config, output_tokens, seed)
                    )
                    saturation = judge_waits(waits)
            peak = gpus.peak_bytes if self.gpu_layers else peak_host_bytes(served.leash_pid)
            done.append(_run(config.batch, figures, peak, saturation, gpus.sm_activity))

    def _watch(self, served: RunningEngine) -> AbstractContextManager[GpuUse]:
        """A GPU's trouble is none of an engine's that does not use it."""
        if not self.gpu_layers:
            return contextlib.nullcontext(GpuUse())
        return watch_gpus(partial(command_pids, served.leash_pid))

    def _open_load(
        self, wanted: TuningLoad, rate: float, config: ServingConfig, output_tokens: int, seed: int
    ) -> OpenLoad:
        return open_load_for(
            rate_per_s=rate,
            arrivals=wanted.arrivals,
            requests=wanted.requests,
            context=config.context,
            output_tokens=output_tokens,
            seed=seed,
        ).model_copy(update={"silence_s": self.silence_s})

    def _serve(
        self, model_file: Path, config: ServingConfig, log: Path
    ) -> AbstractContextManager[RunningEngine]:
        command = self.engine.command(
            str(self.python), str(self.engine.server_worker), str(model_file), config
        )
        return serve(
            command,
            served_name=config.served_name,
            log=log,
            start_timeout_s=self.start_timeout_s,
            silence_s=self.silence_s,
            dying_s=self.dying_s,
            maps=(model_file,) if self.engine.maps_files else (),
            prefetch=self.prefetch,
        )


@contextlib.contextmanager
def watching(served: RunningEngine) -> Iterator[None]:
    """A dead engine says more than the connection that broke with it."""
    try:
        yield
    except (EngineError, CommandError) as error:
        served.check(dying=not isinstance(error, EngineHungError))
        raise


def check_gpu(served: RunningEngine) -> None:
    """Raise `EngineStartError` for an engine that was told to use GPUs and silently runs on the processor."""
    if not gpu_bytes(served.leash_pid):
        raise EngineStartError(
            "the engine holds no memory on any GPU: it runs on the processor",
            fix="use an engine built for this GPU, or set hardware.gpus to 0",
        )


def decoding_speeds(client: LoadClient, window: int, *, silence_s: float) -> tuple[float, ...]:
    """Tokens/s of one stream, some runs after a warm-up, in requests of at most `window` tokens.

    Raises as `LoadClient.run`, past `silence_s` without a byte as well.
    """
    warm_up, *loads = (
        load_for_decoding(
            context=window, output_tokens=min(_SPEED_TOKENS, window // 2), seed=seed
        ).model_copy(update={"silence_s": silence_s})
        for seed in range(_SPEED_RUNS + 1)
    )
    client.run(warm_up.model_copy(update={"min_s": _WARM_UP_S}))
    return tuple(client.run(load).tokens_per_s for load in loads)


def _run(
    batch: int,
    figures: LoadFigures,
    peak_bytes: int,
    saturation: Saturation | None,
    sm_activity: float | None,
) -> Run:
    return Run(
        batch=batch,
        peak_bytes=peak_bytes,
        latency_ms={
            "ttft_p50": figures.ttft_p50_ms,
            "ttft_p95": figures.ttft_p95_ms,
            "tpot_p50": figures.tpot_p50_ms,
            "tpot_p95": figures.tpot_p95_ms,
        },
        throughput=figures.tokens_per_s,
        saturation=saturation,
        sm_activity=sm_activity,
    )


def _score(api: EngineApi, text: str, tokens: int, window: int, slots: int) -> list[Score]:
    found = tokenize(api, text)[:tokens]
    windows: list[list[Token]] = [found[start : start + window] for start in range(0, len(found), window)]
    return score_windows(api, windows, slots=slots)


def _token_pool(api: EngineApi) -> list[int]:
    return [token.id for token in tokenize(api, STOCK)]
