"""Where a health check's samples come from: NVML, the service's processes, its HTTP interface."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from blocks.host.nvml import sample_gpus
from blocks.services.door import open_service
from blocks.services.service_processes import sample_processes
from tasks.core.contract import ContractResult
from tasks.core.records import Record, inputs_digest, new_record
from tasks.core.release import ServiceFolder
from tasks.core.stage import Outcome, Recorder, run_stage
from tasks.core.verdicts import CANCELLED, FAULT, StageName
from tasks.environment.integrity import changed_since_installed
from tasks.health import apply, plan, report
from tasks.health.models import HealthResult


class LocalInstruments:
    """Instruments for a service on this host."""

    def __init__(self, folder: ServiceFolder) -> None:
        self.api = open_service(folder, timeout_s=30.0)

    gpus = staticmethod(sample_gpus)
    process = staticmethod(sample_processes)


def check_samples(
    result: HealthResult, *, records: Sequence[Record], host_fingerprint: str
) -> ContractResult:
    """Check the table of a service's health samples, this look's among them, against its contract."""
    from blocks.expectations.table_contract import Validator
    from blocks.storage.record_frame import to_frame

    look = new_record(
        stage=StageName.HEALTH,
        subject=result.name,
        host_fingerprint=host_fingerprint,
        inputs_digest=inputs_digest(StageName.HEALTH, {}),
        outcome=result.verdict,
        seconds=0,
        numbers=report.numbers(result),
    )
    answered = [
        record
        for record in records
        if record.subject == result.name and record.outcome not in (FAULT, CANCELLED)
    ]
    table = to_frame([*answered, look], report.NUMBERS)
    return Validator().check("table", table, plan.expectations())


def check_service(
    recorder: Recorder, name: str, *, contract: bool = False, files: bool = False
) -> Outcome[HealthResult]:
    """Check a service, and record it. Raises `NotFoundError` for one that is unknown or stopped.

    With `contract`, the accumulated samples are also checked against their contract; with `files`, every file of the
    engine's environment is compared with what was installed.
    """
    settings = recorder.settings
    folder = ServiceFolder(settings.services, name)
    _, release = folder.serving()
    before = plan.last_check(recorder.store.latest(StageName.HEALTH, name), release.id)
    samples = recorder.store.list(StageName.HEALTH) if contract else None
    host = recorder.host_fingerprint
    return run_stage(
        recorder,
        StageName.HEALTH,
        subject=name,
        inputs={"release": release.id, "contract": contract},
        result_type=HealthResult,
        report=report,
        work=lambda: apply.check(
            folder,
            LocalInstruments(folder),
            before,
            contract=None
            if samples is None
            else partial(check_samples, records=samples, host_fingerprint=host),
            compare=partial(changed_since_installed, settings=settings) if files else None,
        ),
        consulted=[before.id] if before else [],
    )
