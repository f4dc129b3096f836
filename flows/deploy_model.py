"""The lifecycle: from a spec to a release that serves, and a first health check of it."""

from __future__ import annotations

import time

from prefect import flow, tags
from prefect.runtime import flow_run

from flows.stale_runs import end_stale_runs, service_tag
from tasks.core.deployment import DeployResult
from tasks.core.files import file_lock, write_atomically
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.verdicts import LifecycleVerdict


@flow(name="deploy-model", flow_run_name="deploy {spec.name}")
def deploy_model(spec: DeploySpec) -> DeployResult:
    """Take a model from its source to a running, tuned service.

    Environment, compatibility and staging run at the same time; a verdict that says no ends the lifecycle and
    leaves what served before serving.

    Args:
        spec: what to deploy, where, and how good it has to be.
    """
    settings = Settings.load()
    lease = settings.leases / f"deploy-{spec.name}.lock"
    with file_lock(lease, wait=False, holder=f"the service {spec.name}"), tags(service_tag(spec.name)):
        end_stale_runs(spec.name, flow_run.id, flow_run.tags)
        start = time.monotonic()
        result = _run_stages(spec)
        _record(result, spec, time.monotonic() - start)
        if result.verdict == LifecycleVerdict.SERVING:
            write_atomically(settings.specs / f"{spec.name}.json", spec.model_dump_json(indent=1))
    return result
