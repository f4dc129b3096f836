"""The quantization stage's step as a Prefect task. What it makes are files with digests: nothing to cache."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.core.settings import Settings
from tasks.quantization import apply
from tasks.quantization.apply import CandidateBench
from tasks.quantization.models import QuantizationRequest, QuantizationResult
from tasks.quantization.sizes import Source


@task(name="measure-candidates", cache_policy=NO_CACHE)
def measure_candidates(
    request: QuantizationRequest, source: Source, bench: CandidateBench, settings: Settings
) -> QuantizationResult:
    """Make each format, measure its quality, size and speed, and choose."""
    return apply.measure_candidates(request, source, bench, settings)
