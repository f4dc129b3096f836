"""The health check's steps as Prefect tasks. They look at the present, so nothing can be cached."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.core.contract import ContractResult
from tasks.core.release import Release, ServiceFolder, ServiceState
from tasks.health import apply
from tasks.health.apply import CheckContract, Instruments
from tasks.health.models import HealthResult, Samples


@task(name="sample-service", cache_policy=NO_CACHE)
def sample_service(
    folder: ServiceFolder, state: ServiceState, release: Release, instruments: Instruments
) -> Samples:
    """One sample of GPU, process and answers."""
    return apply.take_samples(folder, state, release, instruments)


@task(name="check-contract", cache_policy=NO_CACHE)
def check_contract(result: HealthResult, contract: CheckContract) -> ContractResult:
    """Whether the table of samples, including this one, keeps its contract."""
    return contract(result)
