"""The NVIDIA driver and its GPUs by NVML. The import is `pynvml`, the distribution `nvidia-ml-py`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

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
    joined = [state for index in gpus if (state := _fabric(index)) is not None]
    return NvmlReading(
        available=True,
        driver=version_or_none(driver),
        cuda_driver=version_or_none(cuda),
        gpus=tuple(gpus.values()),
        fault="; ".join(faults) or None,
        fabric=all(joined) if joined else None,
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
    """Memory is None for unified memory (GB10), for which NVML reports no size; with MIG it is that of the largest
    instance, and a container may not ask for that of the whole GPU."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    capability = _optional(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle))
    whole = _optional(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))
    instances = _mig_instances(handle)
    virtual = _VIRTUAL.get(_if_offered(lambda: pynvml.nvmlDeviceGetVirtualizationMode(handle)))
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        memory_bytes=max((size for _, size in instances), default=None) if instances else whole,
        uuid=_optional(lambda: str(pynvml.nvmlDeviceGetUUID(handle))),
        mig=None if instances is None else tuple(profile for profile, _ in instances),
        virtual=virtual,
        licensed=_licensed(handle) if virtual == "vgpu" else None,
        driver_model=_DRIVER_MODELS.get(_if_offered(lambda: pynvml.nvmlDeviceGetCurrentDriverModel(handle))),
    )


_VIRTUAL: Mapping[int | None, Literal["passthrough", "vgpu"]] = {
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH: "passthrough",
    pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU: "vgpu",
}
_DRIVER_MODELS: Mapping[int | None, Literal["MCDM", "TCC", "WDDM"]] = {
    pynvml.NVML_DRIVER_WDDM: "WDDM",
    pynvml.NVML_DRIVER_WDM: "TCC",
    pynvml.NVML_DRIVER_MCDM: "MCDM",
}
"""Of Windows, as WSL sees it; Linux has none."""
_PROFILE = re.compile(r"\bMIG (\S+)$")


def _if_offered(question: Callable[[], T]) -> T | None:
    """The answer, or None: a GPU, driver or container that does not answer this works nevertheless."""
    try:
        return question()
    except pynvml.NVMLError:
        return None


def _mig_instances(handle: Any) -> list[tuple[str, int]] | None:
    """Profile and memory in bytes of each MIG instance; None if MIG is off."""
    mode = _if_offered(lambda: pynvml.nvmlDeviceGetMigMode(handle))
    if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    most = _if_offered(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0
    found = [_if_offered(partial(_mig_instance, handle, index)) for index in range(most)]
    return [instance for instance in found if instance is not None]


def _mig_instance(parent: Any, index: int) -> tuple[str, int]:
    instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, index)
    name = pynvml.nvmlDeviceGetName(instance)
    match = _PROFILE.search(name)
    return match[1] if match else name, int(pynvml.nvmlDeviceGetMemoryInfo(instance).total)


def _licensed(handle: Any) -> bool | None:
    """Whether a vGPU has its licence. Other GPUs have features to license too, and CUDA needs none of them."""
    features = _if_offered(lambda: pynvml.nvmlDeviceGetGridLicensableFeatures(handle))
    if features is None or not features.isGridLicenseSupported:
        return None
    return any(
        feature.featureState
        for feature in features.gridLicensableFeatures[: features.licensableFeaturesCount]
    )


def _fabric(index: int) -> bool | None:
    """Whether the GPU has joined the fabric of NVSwitch; None if it needs none, or is too old to tell (A100)."""
    info = pynvml.c_nvmlGpuFabricInfoV_t()

    def ask() -> int:
        pynvml.nvmlDeviceGetGpuFabricInfoV(pynvml.nvmlDeviceGetHandleByIndex(index), ctypes.byref(info))
        return int(info.state)

    state = _if_offered(ask)
    if state in (None, pynvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED):
        return None
    return bool(state == pynvml.NVML_GPU_FABRIC_STATE_COMPLETED)


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
