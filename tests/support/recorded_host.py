"""A host's readings as a file: recorded on a real host, replayed in tests.

`python tests/support/recorded_host.py > tests/golden/hosts/NAME.json` on the host to record it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from blocks.host.host import ThisHost
from tasks.compatibility.models import (
    CudaLibraryReading,
    FabricReading,
    KernelReading,
    NvmlReading,
    SmiReading,
    SystemReading,
    TegraReading,
    ToolkitReading,
)
from tasks.core.facts import Disk


class Readings(BaseModel):
    """What each source said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nvml: NvmlReading = NvmlReading()
    nvidia_smi: SmiReading | None = None
    kernel_driver: KernelReading = KernelReading()
    nvcc: str | None = None
    cuda_library: CudaLibraryReading | None = None
    container_toolkit: ToolkitReading = ToolkitReading()
    docker_runtimes: tuple[str, ...] | None = None
    tegra: TegraReading = TegraReading()
    fabric: FabricReading = FabricReading()
    disks: tuple[Disk, ...] = ()
    system: SystemReading = SystemReading()


class RecordedHost:
    """Answers as the recorded host did."""

    def __init__(self, readings: Readings) -> None:
        self.readings = readings

    @classmethod
    def load(cls, path: Path) -> RecordedHost:
        return cls(Readings.model_validate_json(path.read_bytes()))

    def __getattr__(self, name: str) -> Any:
        return lambda: getattr(self.readings, name)


def record() -> Readings:
    """What the sources of this host say now."""
    host = ThisHost()
    return Readings(**{name: getattr(host, name)() for name in Readings.model_fields})


if __name__ == "__main__":
    print(record().model_dump_json(indent=1))
