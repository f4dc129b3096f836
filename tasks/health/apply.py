"""Take the samples of a health check. Changes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from tasks.core.asking import ask
from tasks.core.cancellation import current
from tasks.core.contract import ContractResult
from tasks.core.errors import EngineError
from tasks.core.records import Record
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.core.serving import ServingConfig
from tasks.engines.card import Metrics, read_card
from tasks.health import plan
from tasks.health.models import GpuSample, HealthResult, ProcessSample, Samples, ServiceSample

SHORT_REQUESTS = 5
COMPLETION_TOKENS = 8


class Completion(Protocol):
    """What `blocks.engine.api.Completion` is to a health check."""

    @property
    def text(self) -> str: ...

    @property
    def seconds(self) -> float: ...


class ServiceApi(Protocol):
    """The service's HTTP interface, as `blocks.engine.api.EngineApi` gives it."""

    def ready(self) -> bool: ...

    def complete(self, model: str, prompt: str, max_tokens: int, /) -> Completion: ...

    def chat(self, model: str, message: str, max_tokens: int, /) -> Completion: ...

    def embed(self, model: str, text: str, /) -> Completion: ...

    def rank(self, model: str, query: str, documents: tuple[str, ...], /) -> Completion: ...

    def metrics(self, path: str, /) -> dict[str, float]: ...


class Instruments(Protocol):
    """Where the samples come from."""

    def gpus(self) -> tuple[GpuSample, ...]:
        """The GPUs of this host; none without a driver."""

    def process(self, folder: ServiceFolder, state: ServiceState) -> ProcessSample:
        """The service's process or container."""

    def api(self, base_url: str) -> AbstractContextManager[ServiceApi]:
        """A client for the service."""


CheckContract = Callable[[HealthResult], ContractResult]
CompareFiles = Callable[[Release], Sequence[str]]


def check(
    folder: ServiceFolder,
    instruments: Instruments,
    before: Record | None,
    *,
    contract: CheckContract | None = None,
    compare: CompareFiles | None = None,
) -> HealthResult:
    """One check of a service. Raises `NotFoundError` for an unknown or stopped one.

    `before` is the record of the last check of this release. `contract` judges the table of samples including this
    one, `compare` names files of the release's environment that changed since they were installed.
    """
    state, release = folder.serving()
    limits = plan.limits_of(release, before)
    samples = take_samples(folder, state, release, instruments)
    changed = compare(release) if compare else ()
    result = plan.conclude(folder.name, release, state.endpoint, samples, limits, changed=changed)
    if contract is None:
        return result
    return plan.conclude(folder.name, release, state.endpoint, samples, limits, contract(result), changed)


def take_samples(
    folder: ServiceFolder, state: ServiceState, release: Release, instruments: Instruments
) -> Samples:
    """One sample of all three levels."""
    gpus = instruments.gpus()
    process = instruments.process(folder, state)
    with instruments.api(state.endpoint) as api:
        names = read_card(release.engine).metrics
        service = sample_service(api, release.config, release.spec.rollout.gate.prompt, names)
    return Samples(gpus=gpus, process=process, service=service)


def sample_service(
    api: ServiceApi, config: ServingConfig, prompt: str, names: Metrics | None
) -> ServiceSample:
    """`/health`, one real answer, then a few requests for one token each, which measure the time to first token.

    `names` are the engine's own of its metrics.
    """
    ready = api.ready()
    try:
        completion = ask(api, config, prompt, COMPLETION_TOKENS).text
    except EngineError as error:
        return ServiceSample(ready=ready, fault=error.what)
    latencies: list[float] = []
    fault: str | None = None
    for _ in range(SHORT_REQUESTS):
        current().check()
        try:
            # A new prompt each time: a cached one would be faster than a user's.
            latencies.append(ask(api, config, f"{secrets.token_hex(4)} {prompt}", 1).seconds * 1000)
        except EngineError as error:
            fault = error.what
    metrics = _metrics(api, names.path) if names else {}
    return ServiceSample(
        ready=ready,
        completion=completion,
        fault=fault,
        latencies_ms=tuple(latencies),
        failed=SHORT_REQUESTS - len(latencies),
        requests_deferred=metrics.get(names.requests_waiting or "") if names else None,
        kv_usage=metrics.get(names.kv_cache_usage or "") if names else None,
        task=config.task,
    )


def _metrics(api: ServiceApi, path: str) -> dict[str, float]:
    try:
        return api.metrics(path)
    except EngineError:
        return {}  # an engine without metrics may still be healthy
