"""Deploy a service's spec again: what an event from the model registry starts."""

from __future__ import annotations

from blocks.prefect.flows import flow, show_state
from flows.deploy_model import deploy_model
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.lifecycle import report
from tasks.lifecycle.models import DeployResult

NOT_REDEPLOYED = "Not redeployed"
"""State of a run whose deploy was refused."""


@flow(name="redeploy-model", flow_run_name="redeploy {service}")
def redeploy_model(service: str, source_event_id: str | None = None) -> DeployResult:
    """Deploy the spec of what a service serves again; its model source is resolved again.

    Args:
        service: name of a service that serves.
        source_event_id: the event that asked for it, kept with the run.
    """
    _, release = ServiceFolder(Settings.load().services, service).serving()
    result = deploy_model(release.spec)
    # A deploy that is refused sends its own message; its name here would send a second one.
    name = NOT_REDEPLOYED if result.says_no else result.verdict.capitalize()
    show_state(name, report.headline(result), says_no=result.says_no)
    return result
