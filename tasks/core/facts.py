"""Facts of a host, in the form programs give and get them (DESIGN 5, `compat check --facts`).

A field left out is not known; `None` or an empty list was looked for and is not there. pydantic's
`model_fields_set` keeps the two apart.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.digests import digest_of


class Gpu(BaseModel):
    """One GPU as NVML names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    compute_capability: str | None = None
    memory_bytes: int | None = Field(None, ge=0)
    uuid: str | None = None


class Facts(BaseModel):
    """What a host is, and what would run on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    driver: str | None = None
    cuda_driver: str | None = None
    nvcc: str | None = None
    gpus: list[Gpu] = []
    glibc: str | None = None
    distribution: str | None = None
    kernel: str | None = None
    cpu: str | None = None
    cpu_count: int | None = None
    memory_bytes: int | None = None
    engine: str | None = None
    engine_version: str | None = None
    packages: dict[str, str] = {}
    cuda_build: str | None = None
    family: str | None = None
    dtype: str | None = None
    forward_compat: bool = False

    def known(self, field: str) -> bool:
        """Whether this was looked at, with whatever result."""
        return field in self.model_fields_set

    @property
    def hardware(self) -> dict[str, object]:
        """What performance depends on: processor, cores, memory to the GiB, GPUs by name and memory."""
        return {
            "cpu": self.cpu,
            "cpu_count": self.cpu_count,
            "memory_gib": round((self.memory_bytes or 0) / 2**30),
            "gpus": sorted((gpu.name, gpu.memory_bytes or 0) for gpu in self.gpus),
        }

    @property
    def fingerprint(self) -> str:
        """Equal for hosts on which a measurement of one holds for the other."""
        return digest_of(self.hardware)
