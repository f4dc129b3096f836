"""What this host is, read from the kernel, NVML and NVIDIA's tools."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import psutil

from blocks.nvidia_tools import read_kernel_module, read_nvcc, read_nvidia_smi
from blocks.nvml import read_nvml
from tasks.compatibility.models import KernelReading, NvmlReading, SmiReading, SystemReading
from tasks.core.facts import Facts


class ThisHost:
    """The host that this process runs on, as the survey asks it."""

    def nvml(self) -> NvmlReading:
        return read_nvml()

    def nvidia_smi(self) -> SmiReading | None:
        return read_nvidia_smi()

    def kernel_driver(self) -> KernelReading:
        return read_kernel_module()

    def nvcc(self) -> str | None:
        return read_nvcc()

    def system(self) -> SystemReading:
        return read_system()


def read_system() -> SystemReading:
    """Everything but the GPUs."""
    return SystemReading(
        glibc=platform.libc_ver()[1] or None,
        distribution=_distribution(),
        kernel=platform.release(),
        cpu=_cpu_model(),
        cpu_count=os.cpu_count(),
        memory_bytes=psutil.virtual_memory().total,
    )


@functools.cache
def fingerprint_here() -> str:
    """Fingerprint of this host's hardware; asks no program, and asks once."""
    return Facts(gpus=read_nvml().gpus, **read_system().model_dump()).fingerprint


def _distribution() -> str | None:
    """Name and version as in `/etc/os-release`: `debian 12`."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return None
    return f"{release['ID']} {release.get('VERSION_ID', '')}".strip()


def _cpu_model() -> str | None:
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None
