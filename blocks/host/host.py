"""What this host is, read from the kernel, NVML and NVIDIA's tools."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import psutil

from blocks.docker.container_toolkit import read_container_toolkit, read_docker_runtimes
from blocks.host.cuda_library import read_cuda_library
from blocks.host.disks import read_disks
from blocks.host.fabric import read_fabric
from blocks.host.nvidia_tools import read_kernel_module, read_nvcc, read_nvidia_smi, text_of
from blocks.host.nvml import read_nvml
from blocks.host.tegra import read_tegra
from tasks.compatibility.models import SystemReading
from tasks.core.facts import Disk, Facts, version_or_none
from tasks.core.settings import Settings

_CGROUP = re.compile(r"(docker|kubepods|containerd|libpod|lxc)")
_KINDS = {"kubepods": "kubernetes", "libpod": "podman"}


def read_system() -> SystemReading:
    """Everything except the GPUs."""
    return SystemReading(
        glibc=version_or_none(platform.libc_ver()[1]),
        distribution=_distribution(),
        kernel=platform.release(),
        cpu=_cpu_model(),
        cpu_count=os.cpu_count(),
        memory_bytes=memory_bytes(),
        container=container_of(os.environ),
    )


class ThisHost:
    """The host that this process runs on, as the survey asks it."""

    nvml = staticmethod(read_nvml)
    nvidia_smi = staticmethod(read_nvidia_smi)
    kernel_driver = staticmethod(read_kernel_module)
    nvcc = staticmethod(read_nvcc)
    cuda_library = staticmethod(read_cuda_library)
    container_toolkit = staticmethod(read_container_toolkit)
    docker_runtimes = staticmethod(read_docker_runtimes)
    tegra = staticmethod(read_tegra)
    fabric = staticmethod(read_fabric)
    system = staticmethod(read_system)

    def disks(self) -> tuple[Disk, ...]:
        settings = Settings.load()
        return read_disks((settings.home, settings.models))


@functools.cache
def fingerprint_here() -> str:
    """Fingerprint of this host's hardware; computed once, without running a program."""
    return Facts(gpus=read_nvml().gpus, **read_system().model_dump()).fingerprint


def container_of(environment: Mapping[str, str], root: Path = Path("/")) -> str | None:
    """The kind of container that this process runs in, judged from the marks of each kind; None outside a container.

    A virtual machine made from an image keeps the mark of the engine that built it. The difference is that container
    engines mount their own `/etc/hosts` and `/etc/resolv.conf` over the image's.
    """
    if "KUBERNETES_SERVICE_HOST" in environment:
        return "kubernetes"
    mounts = text_of(root / "proc/self/mountinfo")
    if not mounts or " /etc/hosts " in mounts or " /etc/resolv.conf " in mounts:
        for mark, kind in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
            if (root / mark).exists():
                return kind
    match = _CGROUP.search(text_of(root / "proc/1/cgroup"))
    if match:
        return _KINDS.get(match[1], match[1])
    return environment.get("container", "").encode(errors="replace").decode() or None


def _distribution() -> str | None:
    """Name and version as in `/etc/os-release`: `debian 12`."""
    try:
        release = platform.freedesktop_os_release()
    except (OSError, UnicodeDecodeError):
        return None
    return f"{release['ID']} {release.get('VERSION_ID', '')}".strip()


def _cpu_model() -> str | None:
    for line in text_of(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or None


def memory_bytes() -> int:
    """From `/proc/meminfo`, of which a container may have its own; if that is masked, from the system."""
    try:
        return int(psutil.virtual_memory().total)
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
