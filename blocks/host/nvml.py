"""The NVIDIA driver and its GPUs by NVML. The import is `pynvml`, the distribution `nvidia-ml-py`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pynvml

from tasks.compatibility.models import NvmlReading
from tasks.core.facts import Gpu, version_or_none
from tasks.core.gpus import VISIBLE, HostGpu, choose_gpus
from tasks.health.models import GpuSample

T = TypeVar("T")

_HOST_PIDS = "pid:[4026531836]"
"""The first namespace of processes; the kernel gives it this number at boot (PROC_PID_INIT_INO)."""

_NOT_HERE = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
"""NVML's errors for a host without a driver, or a container without access to it."""

_NOT_OFFERED = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
)


@contextlib.contextmanager
def nvml_session() -> Iterator[bool]:
    """Whether NVML could be initialised; it is shut down at the end of the block."""
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
    """Driver and GPUs of this host. Never raises: `fault` says why a driver does not work."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        absent = error.value in _NOT_HERE
        return NvmlReading(fault=None if absent else f"NVML: {error}")
    try:
        return _read_all()
    finally:
        pynvml.nvmlShutdown()


def _read_all() -> NvmlReading:
    faults: list[str] = []
    driver = _ask("driver version", pynvml.nvmlSystemGetDriverVersion, faults)
    cuda = _ask("CUDA version", _cuda_version, faults)
    gpus = _of_each(_read_gpu, faults)
    return NvmlReading(
        available=True,
        driver=version_or_none(driver),
        cuda_driver=version_or_none(cuda),
        gpus=tuple(gpus.values()),
        fault="; ".join(faults) or None,
    )


def gpus_in_use(count: int) -> tuple[HostGpu, ...]:
    """The GPUs for an engine that is to use `count`, the largest first; at most the number present."""
    if not count:
        return ()
    with nvml_session() as available:
        if not available:
            return ()
        gpus = [HostGpu(index, gpu) for index, gpu in _of_each(_read_gpu, []).items()]
    return choose_gpus(gpus, count, os.environ.get(VISIBLE))


def _ask(what: str, question: Callable[[], T], faults: list[str]) -> T | None:
    try:
        return question()
    except pynvml.NVMLError as error:
        faults.append(f"NVML: {what}: {error}")
        return None


def _of_each(read: Callable[[int], T], faults: list[str]) -> dict[int, T]:
    """What is read of each GPU that answers, by its index."""
    count = _ask("number of GPUs", pynvml.nvmlDeviceGetCount, faults) or 0
    found = {index: _ask(f"GPU {index}", partial(read, index), faults) for index in range(count)}
    return {index: answer for index, answer in found.items() if answer is not None}


def _optional(question: Callable[[], T]) -> T | None:
    """The answer, or None if this GPU or driver does not support it: a passively cooled GPU has no fan."""
    try:
        return question()
    except pynvml.NVMLError as error:
        if error.value in _NOT_OFFERED:
            return None
        raise


def _cuda_version() -> str | None:
    cuda = _optional(pynvml.nvmlSystemGetCudaDriverVersion_v2) or _optional(
        pynvml.nvmlSystemGetCudaDriverVersion
    )
    return f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None


def gpu_bytes_of(pids: Collection[int], before: Mapping[int, int] | None = None) -> int:
    """Memory that these processes hold on all GPUs of this host, bytes; 0 without a driver.

    `before` is what GPUs had in use before the processes began: if NVML names none of the processes, everything
    since then counts as theirs.
    """
    with nvml_session() as available:
        if not available:
            return 0
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return sum(held_bytes(handle, pids) for handle in handles) or sum(
            bytes_since(handles[index], used) for index, used in (before or {}).items()
        )


def held_bytes(handle: Any, pids: Collection[int]) -> int:
    """Memory that these processes hold on one GPU. Raises `pynvml.NVMLError`."""
    running = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return sum(process.usedGpuMemory or 0 for process in running if process.pid in pids)


def bytes_since(handle: Any, before: int) -> int:
    """Memory of one GPU that has been allocated since. Raises `pynvml.NVMLError`."""
    return max(0, int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) - before)


def memory_unless_by_process(indices: Sequence[int]) -> dict[int, int]:
    """Bytes in use now, by GPU: for a container, where NVML does not use the container's process ids.

    Drivers report the host's ids, or translate them and report no memory (NVIDIA/nvidia-docker#1483,
    NVIDIA/open-gpu-kernel-modules#614). Empty on the host, where NVML names each process.
    """
    if str(Path("/proc/self/ns/pid").readlink()) == _HOST_PIDS:
        return {}
    with nvml_session() as available:
        if not available:
            return {}
        return {index: bytes_since(pynvml.nvmlDeviceGetHandleByIndex(index), 0) for index in indices}


def _read_gpu(index: int) -> Gpu:
    """None for unified memory (GB10), for which NVML reports no size."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    capability = _optional(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        memory_bytes=_optional(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)),
        uuid=_optional(lambda: str(pynvml.nvmlDeviceGetUUID(handle))),
    )


_SLOWDOWNS = {
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "too hot (hardware)",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "too hot (driver)",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
}
"""Reasons for lower clocks that are faults, unlike an idle GPU or a power cap."""


def sample_gpus() -> tuple[GpuSample, ...]:
    """Temperature, fan, memory and slowdowns of each GPU that answers now; empty without a driver.

    NVML still counts a GPU that fell off the bus, but every query about it fails: it is omitted, so that a check
    finds fewer GPUs than the service should have.
    """
    with nvml_session() as available:
        if not available:
            return ()
        return tuple(_of_each(_sample_gpu, []).values())


def _sample_gpu(index: int) -> GpuSample:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    fan = _optional(lambda: pynvml.nvmlDeviceGetFanSpeed(handle))
    memory = _optional(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
    reasons = _optional(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
    return GpuSample(
        index=index,
        name=pynvml.nvmlDeviceGetName(handle),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        temperature_c=_optional(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        fan=None if fan is None else fan / 100,
        memory_used=None if memory is None else memory.used / memory.total,
        slowed=tuple(text for bit, text in _SLOWDOWNS.items() if reasons & bit),
    )
