"""Is a service well? GPU, process and answers; nightly of every service."""

from __future__ import annotations

from functools import partial

from prefect import flow

from blocks.host.host import fingerprint_here
from blocks.services.health_instruments import LocalInstruments, SampleContract
from blocks.storage.record_store import open_record_store
from flows.every_service import run_name, worst_of_every_service
from flows.recording import Outcome, run_stage
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.environment.integrity import changed_since_installed
from tasks.health import apply, plan, report
from tasks.health.models import HealthResult
from tasks.health.task import check_contract, sample_service


@flow(name="check-health", flow_run_name=partial(run_name, "health"))
def check_health(
    name: str | None = None, contract: bool = False, files: bool = False
) -> Outcome[HealthResult]:
    """Check a service on three levels: its GPUs, its process, and what it answers.

    Args:
        name: The service; every service of this host when empty.
        contract: Whether to hold the accumulated samples to their contract, too (takes seconds).
        files: Whether to compare every file of the engine's environment with what was installed (seconds, too).
    """
    if name is None:
        return worst_of_every_service(partial(check_health, contract=contract, files=files))
    settings = Settings.load()
    folder = ServiceFolder(settings.services, name)
    _, release = folder.serving()
    store = open_record_store(settings)
    before = plan.last_check(store.latest(StageName.HEALTH, name), release.id)
    samples = SampleContract(store.list(StageName.HEALTH), fingerprint_here()) if contract else None
    outcome = run_stage(
        StageName.HEALTH,
        subject=name,
        inputs={"release": release.id, "contract": contract},
        result_type=HealthResult,
        report=report,
        work=lambda: apply.check(
            folder,
            LocalInstruments(),
            before,
            contract=(lambda result: check_contract(result, samples)) if samples else None,
            sample=sample_service,
            compare=partial(changed_since_installed, settings=settings) if files else None,
        ),
        consulted=[before.id] if before else [],
    )
    return outcome.as_state()
