"""The NVIDIA driver and its GPUs by NVML. The import is `pynvml`, the distribution `nvidia-ml-py`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pynvml

from tasks.core.facts import Gpu
from tasks.health.models import GpuSample


@dataclass(frozen=True)
class NvmlReading:
    """Kernel driver, user-mode CUDA version and GPUs; empty where there is no driver."""

    driver: str | None = None
    cuda_driver: str | None = None
    gpus: tuple[Gpu, ...] = ()


@contextlib.contextmanager
def nvml_session() -> Iterator[bool]:
    """Whether NVML could be initialised; it is shut down when the block is left."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def read_nvml() -> NvmlReading:
    """Driver and GPUs of this host. Never raises for a host without them."""
    with nvml_session() as available:
        if not available:
            return NvmlReading()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return NvmlReading(
            driver=pynvml.nvmlSystemGetDriverVersion(),
            cuda_driver=f"{cuda // 1000}.{cuda % 1000 // 10}",
            gpus=tuple(_read_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())),
        )


def _read_gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        compute_capability=f"{major}.{minor}",
        memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
    )


_SLOWDOWNS = {
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "too hot (hardware)",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "too hot (driver)",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
}
"""Reasons for lower clocks that are faults; an idle GPU or a power cap is none."""

T = TypeVar("T")


def sample_gpus() -> tuple[GpuSample, ...]:
    """Temperature, fan, memory and slowdowns of each GPU now; none where there is no driver."""
    with nvml_session() as available:
        if not available:
            return ()
        return tuple(_sample_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))


def _sample_gpu(index: int) -> GpuSample:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    fan = _reported(lambda: pynvml.nvmlDeviceGetFanSpeed(handle))
    memory = _reported(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    reasons = _reported(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
    return GpuSample(
        index=index,
        name=pynvml.nvmlDeviceGetName(handle),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        temperature_c=_reported(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        fan=None if fan is None else fan / 100,
        memory_used=None if memory is None else memory.used / memory.total,
        slowed=tuple(text for bit, text in _SLOWDOWNS.items() if reasons & bit),
    )


def _reported(read: Callable[[], T]) -> T | None:
    """The value; None where this GPU does not report it: a passively cooled one has no fan."""
    try:
        return read()
    except pynvml.NVMLError:
        return None
