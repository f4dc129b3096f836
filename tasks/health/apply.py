"""Takes the samples of a health check. It changes nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from tasks.core.cancellation import current
from tasks.core.errors import EngineError, NotFoundError
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.health.models import GpuSample, HealthLimits, ProcessSample, Samples, ServiceSample

SHORT_REQUESTS = 5
_PROCESSING = ("llamacpp:requests_processing", "vllm:num_requests_running")
_DEFERRED = ("llamacpp:requests_deferred", "vllm:num_requests_waiting")
_KV_USAGE = ("vllm:kv_cache_usage_perc", "llamacpp:kv_cache_usage_ratio")


class Completion(Protocol):
    """What `blocks.engine_api.Completion` is to a health check."""

    @property
    def seconds(self) -> float: ...


class ServiceApi(Protocol):
    """The service's HTTP interface, as `blocks.engine_api.EngineApi` gives it."""

    def ready(self) -> bool: ...

    def complete(self, model: str, prompt: str, max_tokens: int, /) -> Completion: ...

    def metrics(self) -> dict[str, float]: ...


class Probes(Protocol):
    """Where the samples come from."""

    def gpus(self) -> tuple[GpuSample, ...]:
        """The GPUs of this host; none where there is no driver."""

    def process(self, folder: ServiceFolder, state: ServiceState) -> ProcessSample:
        """The service's process or container."""

    def api(self, base_url: str) -> AbstractContextManager[ServiceApi]:
        """A client for the service."""


def find_service(folder: ServiceFolder) -> tuple[ServiceState, Release]:
    """What serves under that name. Raises `NotFoundError` for an unknown or stopped service."""
    state = folder.state()
    if state is None:
        known = "it was stopped" if folder.root.is_dir() else "it was never deployed"
        raise NotFoundError(f"no service {folder.name}: {known}", fix="list the services: slipway status")
    release = folder.release(state.release)
    if release is None:
        raise NotFoundError(
            f"the release {state.release} of {folder.name} is not kept here", fix="deploy the service again"
        )
    return state, release


def limits_of(release: Release) -> HealthLimits:
    """What the release's spec asks for."""
    spec = release.spec
    return HealthLimits(
        latency_slo_ms=spec.checks.latency_slo_ms,
        gpu_temperature_c=spec.checks.gpu_temperature_c,
        gpus=spec.hardware.gpus,
        memory_bytes=spec.hardware.memory or None,
        memory_fraction=spec.objectives.memory_fraction,
    )


def take_samples(folder: ServiceFolder, state: ServiceState, release: Release, probes: Probes) -> Samples:
    """One look on all three levels."""
    gpus = probes.gpus() if release.spec.hardware.gpus else ()
    process = probes.process(folder, state)
    with probes.api(state.endpoint) as api:
        service = sample_service(api, release.launch.served_name, release.spec.rollout.gate.prompt)
    return Samples(gpus=gpus, process=process, service=service)


def sample_service(api: ServiceApi, model: str, prompt: str) -> ServiceSample:
    """`/health`, one real completion, then a few requests for a single token: their time is that to the first."""
    ready = api.ready()
    try:
        api.complete(model, prompt, 8)
    except EngineError as error:
        return ServiceSample(ready=ready, completed=False, fault=error.what)
    latencies: list[float] = []
    fault: str | None = None
    for number in range(SHORT_REQUESTS):
        current().check()
        try:
            # A prompt of its own each time: one that is in the cache would be faster than a user's.
            latencies.append(api.complete(model, f"{number} {prompt}", 1).seconds * 1000)
        except EngineError as error:
            fault = error.what
    metrics = _metrics(api)
    return ServiceSample(
        ready=ready,
        completed=True,
        fault=fault,
        latencies_ms=tuple(latencies),
        failed=SHORT_REQUESTS - len(latencies),
        requests_processing=_first(metrics, _PROCESSING),
        requests_deferred=_first(metrics, _DEFERRED),
        kv_usage=_first(metrics, _KV_USAGE),
    )


def _metrics(api: ServiceApi) -> dict[str, float]:
    try:
        return api.metrics()
    except EngineError:
        return {}  # an engine without metrics is not ill


def _first(metrics: dict[str, float], names: tuple[str, ...]) -> float | None:
    return next((metrics[name] for name in names if name in metrics), None)
