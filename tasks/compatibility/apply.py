"""Survey a host: ask every source, and keep who said what (the article's double check)."""

from __future__ import annotations

from typing import Any, Protocol

from tasks.compatibility.models import (
    KernelReading,
    NvmlReading,
    Sighting,
    SmiReading,
    Survey,
    SystemReading,
    TablesCheck,
    TablesIdentity,
)
from tasks.core.facts import Facts


class Host(Protocol):
    """Where facts come from. No reading raises for a thing that is not there: that is an answer."""

    def nvml(self) -> NvmlReading:
        """The driver's management library."""

    def nvidia_smi(self) -> SmiReading | None:
        """The program nvidia-smi; None where it is not installed."""

    def kernel_driver(self) -> KernelReading:
        """The loaded kernel module."""

    def nvcc(self) -> str | None:
        """Version of the CUDA toolkit; None where there is none."""

    def system(self) -> SystemReading:
        """All but the GPUs."""


class TableContract(Protocol):
    """The contract on the fact tables that come with Slipway."""

    @property
    def identity(self) -> TablesIdentity:
        """What its answer depends on; known without checking."""

    def check(self) -> TablesCheck:
        """The answer, and its page. Raises `SlipwayError` where the tables cannot be read."""


def survey_host(host: Host) -> Survey:
    """Facts of `host`, with every source's sighting of those that have two.

    The kernel driver is named by NVML, else by the kernel module, else by nvidia-smi. Without a GPU, driver
    or toolkit the facts say so. Where the driver is loaded and does not answer, `fault` says why, and the
    GPUs are those that the kernel module lists.
    """
    nvml, smi, kernel = host.nvml(), host.nvidia_smi(), host.kernel_driver()
    nvcc, system = host.nvcc(), host.system()
    broken = nvml.fault or (smi.fault if smi and kernel.driver and not nvml.available else None)
    known: dict[str, Any] = {
        "driver": nvml.driver or kernel.driver or (smi.driver if smi else None),
        "cuda_driver": nvml.cuda_driver or (smi.cuda_driver if smi else None),
        "nvcc": nvcc,
        "gpus": kernel.gpus if broken and not nvml.gpus else nvml.gpus,
        **system.model_dump(),
    }
    if broken and not known["gpus"]:
        del known["gpus"]
    return Survey(facts=Facts(**known), sightings=tuple(_sightings(nvml, smi, kernel, nvcc)), fault=broken)


def _sightings(
    nvml: NvmlReading, smi: SmiReading | None, kernel: KernelReading, nvcc: str | None
) -> list[Sighting]:
    rows = [Sighting(fact="driver", source="kernel module", value=kernel.driver)]
    if nvml.available:
        rows += [
            Sighting(fact="driver", source="NVML", value=nvml.driver),
            Sighting(fact="cuda_driver", source="NVML", value=nvml.cuda_driver),
            Sighting(fact="gpu_count", source="NVML", value=str(len(nvml.gpus))),
        ]
    if smi is not None:
        rows += [
            Sighting(fact="driver", source="nvidia-smi", value=smi.driver),
            Sighting(fact="cuda_driver", source="nvidia-smi", value=smi.cuda_driver),
            Sighting(
                fact="gpu_count", source="nvidia-smi", value=None if smi.gpus is None else str(smi.gpus)
            ),
        ]
    return sorted(
        [*rows, Sighting(fact="nvcc", source="nvcc", value=nvcc)], key=lambda row: (row.fact, row.source)
    )
