"""The NVIDIA driver and its GPUs by NVML. The import is `pynvml`, the distribution `nvidia-ml-py`."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pynvml

from tasks.core.facts import Gpu


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


def gpu_bytes_of(pids: Collection[int]) -> int:
    """Memory that these processes hold on all GPUs of this host, bytes; 0 without a driver."""
    with nvml_session() as available:
        if not available:
            return 0
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return sum(
            process.usedGpuMemory or 0
            for handle in handles
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
            if process.pid in pids
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
