"""Is a service well? GPU, process and answers; nightly of every service."""

from __future__ import annotations

from functools import partial

from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.every_service import run_name, worst_of_every_service
from blocks.prefect.flows import flow
from blocks.services.health_instruments import check_service
from tasks.core.stage import Outcome
from tasks.health.models import HealthResult


@flow(name="check-health", flow_run_name=partial(run_name, "health"))
def check_health(
    name: str | None = None, contract: bool = False, files: bool = False
) -> Outcome[HealthResult] | None:
    """Check a service on three levels: its GPUs, its process, and what it answers.

    Args:
        name: The service; every service of this host when empty.
        contract: Whether to check the accumulated samples against their contract (takes seconds).
        files: Whether to compare every file of the engine's environment with what was installed (takes seconds).
    """
    if name is None:
        return worst_of_every_service(partial(check_health, contract=contract, files=files))
    return check_service(flow_recorder(), name, contract=contract, files=files)
