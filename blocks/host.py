"""What this host is, read from the kernel and from NVML."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import psutil

from blocks.nvml import read_nvml
from tasks.core.facts import Facts


def survey() -> Facts:
    """Facts of this host. A missing GPU, driver or toolkit is an answer, not a fault."""
    nvml = read_nvml()
    return Facts(
        driver=nvml.driver,
        cuda_driver=nvml.cuda_driver,
        gpus=list(nvml.gpus),
        glibc=platform.libc_ver()[1] or None,
        kernel=platform.release(),
        cpu=_cpu_model(),
        cpu_count=os.cpu_count(),
        memory_bytes=psutil.virtual_memory().total,
    )


@functools.cache
def fingerprint_here() -> str:
    """Fingerprint of this host's hardware."""
    return survey().fingerprint


def _cpu_model() -> str | None:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None
