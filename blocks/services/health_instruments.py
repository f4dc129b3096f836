"""Where a health check's samples come from: NVML, the service's processes, its HTTP interface."""

from __future__ import annotations

from collections.abc import Sequence

from blocks.engine.api import EngineApi
from blocks.host.nvml import sample_gpus
from blocks.services.service_processes import sample_processes
from tasks.core.contract import ContractResult
from tasks.core.records import Record, inputs_digest, new_record
from tasks.core.release import ServiceFolder, ServiceState
from tasks.core.verdicts import CANCELLED, FAULT, StageName
from tasks.health import plan, report
from tasks.health.models import GpuSample, HealthResult, ProcessSample


class LocalInstruments:
    """Instruments for services on this host."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s

    def gpus(self) -> tuple[GpuSample, ...]:
        """The GPUs of this host."""
        return sample_gpus()

    def process(self, folder: ServiceFolder, state: ServiceState) -> ProcessSample:
        """The service's process or container."""
        return sample_processes(folder, state)

    def api(self, base_url: str) -> EngineApi:
        """A client for the service."""
        return EngineApi(base_url, timeout_s=self._timeout_s)


class SampleContract:
    """The contract on the table of a service's health samples, by Great Expectations."""

    def __init__(self, records: Sequence[Record], host_fingerprint: str) -> None:
        self._records = records
        self._host = host_fingerprint

    def __call__(self, result: HealthResult) -> ContractResult:
        """Judge the accumulated samples with this look's among them."""
        from blocks.expectations.table_contract import check_table
        from blocks.storage.record_frame import to_frame

        look = new_record(
            stage=StageName.HEALTH,
            subject=result.name,
            host_fingerprint=self._host,
            inputs_digest=inputs_digest(StageName.HEALTH, {}),
            outcome=result.verdict,
            seconds=0,
            numbers=report.numbers(result),
        )
        answered = [
            record
            for record in self._records
            if record.subject == result.name and record.outcome not in (FAULT, CANCELLED)
        ]
        return check_table(to_frame([*answered, look], report.NUMBERS), plan.expectations())
