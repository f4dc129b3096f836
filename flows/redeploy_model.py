"""Deploy a service's spec again: what an event from the model registry starts."""

from __future__ import annotations

from blocks.prefect.flows import flow
from flows.deploy_model import deploy_model, show_result
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.lifecycle.models import DeployResult


@flow(name="redeploy-model", flow_run_name="redeploy {service}")
def redeploy_model(service: str, source_event_id: str | None = None) -> DeployResult:
    """Deploy the spec of what a service serves again; its model source is resolved again.

    Args:
        service: name of a service that serves.
        source_event_id: the event that asked for it, kept with the run.
    """
    _, release = ServiceFolder(Settings.load().services, service).serving()
    return show_result(deploy_model(release.spec))
