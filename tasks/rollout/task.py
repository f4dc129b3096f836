"""The rollout as a Prefect task."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.core.prefetch import Prefetch
from tasks.core.release import Release, ServiceFolder
from tasks.rollout import apply
from tasks.rollout.models import RolloutResult
from tasks.rollout.target import OpenApi, Target


@task(name="bring-into-service", cache_policy=NO_CACHE)
def bring_into_service(
    release: Release, folder: ServiceFolder, target: Target, open_api: OpenApi, prefetch: Prefetch
) -> RolloutResult:
    """Start, gate, switch, verify and settle a release."""
    return apply.roll_out(release, folder, target, open_api, prefetch)
