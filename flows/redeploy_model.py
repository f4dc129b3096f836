"""Deploy a service's spec again: what an event from the model registry starts."""

from __future__ import annotations

from prefect import flow

from flows.deploy_model import deploy_model
from tasks.core.deployment import DeployResult
from tasks.core.errors import NotFoundError
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec


@flow(name="redeploy-model", flow_run_name="redeploy {service}")
def redeploy_model(service: str, source_event_id: str | None = None) -> DeployResult:
    """Deploy the last spec of a service again; its model source is resolved anew.

    Args:
        service: name of a service that was deployed before.
        source_event_id: the event that asked for it, kept with the run.
    """
    return deploy_model(load_last_spec(Settings.load(), service))


def load_last_spec(settings: Settings, service: str) -> DeploySpec:
    """The spec that was deployed last. Raises `NotFoundError` that names the known services."""
    try:
        return DeploySpec.model_validate_json((settings.specs / f"{service}.json").read_bytes())
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in settings.specs.glob("*.json"))) or "none yet"
        raise NotFoundError(f"no service {service} was ever deployed here", fix=f"known: {known}") from None
