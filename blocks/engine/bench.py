"""A workbench for one engine: serves a model as configured, and puts load on it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from blocks.engine.api import EngineApi
from blocks.engine.load_client import LoadClient
from blocks.engine.load_prompts import Asking, asking_for
from blocks.engine.process import RunningEngine, serve
from blocks.host.gpu_watch import GpuUse, watch_gpus
from blocks.host.nvml import gpu_bytes_of, memory_unless_by_process
from blocks.processes.process import last_lines
from blocks.processes.process_memory import command_pids, peak_host_bytes
from tasks.batching.models import ProbeRequest, Run
from tasks.batching.saturation import judge_waits
from tasks.core.errors import CommandError, EngineError, EngineHungError, EngineStartError, SpecError
from tasks.core.load import (
    Load,
    LoadFigures,
    OpenLoad,
    Prompts,
    Wait,
    load_for,
    load_for_decoding,
    longest_output,
    open_load_for,
)
from tasks.core.model_task import Task
from tasks.core.prefetch import Prefetch, no_prefetch
from tasks.core.serving import ServingConfig
from tasks.engines.base import Engine
from tasks.engines.card import StartReport
from tasks.engines.failures import failure_of

SCORING_S = 600.0
"""Longest wait for the next byte while text is scored: an answer comes once all of its tokens are done."""

_SPEED_RUNS = 3
_SPEED_TOKENS = 96
_WARM_UP_S = 0.2


P = TypeVar("P", bound=Prompts)


class LoadSource(Protocol):
    """A load generator for one engine: the built-in client, or another one."""

    def run(self, load: Load) -> LoadFigures:
        """As `LoadClient.run`."""

    def run_open(self, load: OpenLoad) -> tuple[LoadFigures, tuple[Wait, ...]]:
        """As `LoadClient.run_open`."""


LoadBy = Callable[[str, str], LoadSource]


@dataclass(frozen=True)
class EngineBench:
    """One engine in one environment. If it is configured to use GPUs, its memory there is measured.

    An engine under load hangs if it sends no byte for `silence_s`. An engine that breaks off an answer has `dying_s`
    to exit. `load_by` makes a load generator from the engine's address and the model's name; without it the built-in
    client sends the load. The built-in client always warms up. Implements `tasks.batching.apply.ServingBench`.
    """

    engine: Engine
    python: Path
    start_timeout_s: float = 120.0
    silence_s: float = 120.0
    dying_s: float = 2.0
    load_by: LoadBy | None = None
    prefetch: Prefetch = no_prefetch

    @contextlib.contextmanager
    def serve(self, model: Path, config: ServingConfig, log: Path) -> Iterator[RunningEngine]:
        """The running engine, once it has completed a prompt.

        If a request in the block fails because the engine died, the error says how it died. Raises the same errors as
        `blocks.engine.process.serve`, and `EngineStartError` if the engine should use GPUs but does not.
        """
        command = self.engine.command(str(self.python), str(self.engine.server_worker), str(model), config)
        before = memory_unless_by_process(config.gpu_indices) if config.on_gpus else {}
        with serve(
            command,
            served_name=config.served_name,
            log=log,
            start_timeout_s=self.start_timeout_s,
            silence_s=self.silence_s,
            dying_s=self.dying_s,
            maps=(model,) if self.engine.card.maps_files else (),
            prefetch=self.prefetch,
            config=config,
        ) as served:
            served = replace(served, gpu_memory_before=before)
            if config.on_gpus:
                check_gpu(served)
            with _watching(served):
                yield served

    def decoding_speeds(self, served: RunningEngine, config: ServingConfig, window: int) -> tuple[float, ...]:
        """Tokens/s of one stream, in several runs after a warm-up, with requests of at most `window` tokens; of a
        model for another task its answers/s.

        Raises the same errors as `LoadClient.run`.
        """
        if config.task is not Task.GENERATE:
            return self._whole_speeds(served, config, window)
        # The speed of decoding is the same for either; a chat template might not fit into the window.
        client = _client(served, config, self._asking(served, config.model_copy(update={"chat": None})))
        warm_up, *loads = (
            load_for_decoding(
                context=window, output_tokens=min(_SPEED_TOKENS, window // 2), seed=seed
            ).model_copy(update={"silence_s": self.silence_s})
            for seed in range(_SPEED_RUNS + 1)
        )
        client.run(warm_up.model_copy(update={"min_s": _WARM_UP_S}))
        return tuple(client.run(load).tokens_per_s for load in loads)

    def _whole_speeds(self, served: RunningEngine, config: ServingConfig, window: int) -> tuple[float, ...]:
        client = _client(served, config, self._asking(served, config))
        warm_up, *loads = (
            load_for(clients=1, context=window, output_tokens=2, seed=seed).model_copy(
                update={"silence_s": self.silence_s}
            )
            for seed in range(_SPEED_RUNS + 1)
        )
        client.run(warm_up.model_copy(update={"min_s": _WARM_UP_S}))
        return tuple(client.run(load).tokens_per_s for load in loads)

    def probe(self, request: ProbeRequest) -> Sequence[Run]:
        """As the batching stage's `ServingBench` says."""
        done: list[Run] = []
        try:
            with self.serve(request.model_file, request.config, request.log) as served:
                self._load(served, request, done)
        except EngineError as error:
            said = last_lines(request.log.read_text(errors="replace"))
            done.append(Run.failing(request.config.batch, failure_of(error, log_tail=said)))
        return done

    def _load(self, served: RunningEngine, request: ProbeRequest, done: list[Run]) -> None:
        config, wanted = request.config, request.load
        asking = self._asking(served, config)
        client = _client(served, config, asking)
        generator = self.load_by(served.base_url, config.served_name) if self.load_by else client
        load = load_for(
            clients=config.batch,
            context=config.context,
            output_tokens=request.output_tokens,
            prompt_tokens=wanted.prompt_tokens,
        ).model_copy(update={"silence_s": self.silence_s})
        _check_room(asking, load, config)
        warm_up = {"seed": -1, "min_s": _WARM_UP_S, "min_requests": 1, "whole": False}
        client.run(load.model_copy(update=warm_up))
        open_load = None if wanted.rate is None else self._open_load(request, wanted.rate)
        if self.load_by:  # it knows nothing of what a template adds
            load, open_load = _without(asking.added, load), open_load and _without(asking.added, open_load)
        start = self._start_report(request)
        for seed in range(request.runs):
            before = self._preempted(served)
            with _watch(served, config) as gpus:
                if open_load is None:
                    figures, saturation = generator.run(load.model_copy(update={"seed": seed})), None
                else:
                    figures, waits = generator.run_open(open_load.model_copy(update={"seed": seed}))
                    saturation = judge_waits(waits)
            peak = gpus.peak_bytes if config.on_gpus else peak_host_bytes(served.guard_pid)
            preemptions = None if before is None else (self._preempted(served) or before) - before
            done.append(
                Run(
                    batch=config.batch,
                    peak_bytes=peak,
                    latency_ms=figures.latency_ms,
                    throughput=figures.tokens_per_s,
                    saturation=saturation,
                    sm_activity=gpus.sm_activity,
                    preemptions=preemptions,
                    gpu_layers=start.gpu_layers,
                    kv_tokens=start.kv_tokens,
                )
            )

    def _start_report(self, request: ProbeRequest) -> StartReport:
        """What the engine logged at its start about the GPUs that it uses."""
        log = self.engine.card.start_log
        if log is None or not request.config.takes_a_share:
            return StartReport()
        return log.read(request.log.read_text(errors="replace"))

    def _preempted(self, served: RunningEngine) -> int | None:
        """Sequences that the engine has preempted so far; None if it does not count them."""
        metrics = self.engine.card.metrics
        if metrics is None or metrics.preemptions is None:
            return None
        with EngineApi(served.base_url, timeout_s=self.silence_s) as api:
            found = api.metrics(metrics.path).get(metrics.preemptions)
        return None if found is None else int(found)

    def _asking(self, served: RunningEngine, config: ServingConfig) -> Asking:
        with EngineApi(served.base_url, timeout_s=self.silence_s) as api:
            return asking_for(self.engine.card, api, config)

    def _open_load(self, request: ProbeRequest, rate: float) -> OpenLoad:
        wanted = request.load
        return open_load_for(
            rate_per_s=rate,
            arrivals=wanted.arrivals,
            requests=wanted.requests,
            context=request.config.context,
            output_tokens=request.output_tokens,
            prompt_tokens=wanted.prompt_tokens,
        ).model_copy(update={"silence_s": self.silence_s})


def _client(served: RunningEngine, config: ServingConfig, asking: Asking) -> LoadClient:
    return LoadClient(
        served.base_url, config.served_name, asking.pool, asking.body, asking.path, whole=asking.whole
    )


def _without(added: int, load: P) -> P:
    return load.model_copy(update={"prompt_tokens": max(1, load.prompt_tokens - added)})


def _check_room(asking: Asking, load: Prompts, config: ServingConfig) -> None:
    """Raise `SpecError` if the chat template leaves no room in the context: every answer would be cut off."""
    needed = asking.prompt_tokens(load.prompt_tokens) + longest_output(load.output_tokens)
    if asking.added and needed > config.context:
        raise SpecError(
            f"the chat template adds {asking.added} tokens to each prompt, so prompts and outputs of up to "
            f"{longest_output(load.output_tokens)} tokens do not fit into tuning.context {config.context}",
            fix=f"set tuning.context to {needed} or more, or lower tuning.output_tokens",
        )


@contextlib.contextmanager
def _watching(served: RunningEngine) -> Iterator[None]:
    """If a request fails because the engine died, raise how it died: that says more than the broken connection."""
    try:
        yield
    except (EngineError, CommandError) as error:
        served.check(dying=not isinstance(error, EngineHungError))
        raise


def check_gpu(served: RunningEngine) -> None:
    """Raise `EngineStartError` for an engine that was told to use GPUs and silently runs on the CPU."""
    if not gpu_bytes_of(command_pids(served.guard_pid), served.gpu_memory_before):
        raise EngineStartError(
            "the engine uses no GPU memory: it runs on the CPU",
            fix="use an engine built for this GPU, or set hardware.gpus to 0",
        )


def _watch(served: RunningEngine, config: ServingConfig) -> AbstractContextManager[GpuUse]:
    """Watch the GPUs if the engine uses them; other engines are not affected by a GPU that fails."""
    if not config.on_gpus:
        return contextlib.nullcontext(GpuUse())
    return watch_gpus(partial(command_pids, served.guard_pid), before=served.gpu_memory_before)
