"""What NVIDIA's own programs and kernel module report: nvidia-smi, nvcc, `/proc/driver/nvidia`."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from blocks.processes.process import Finished, run
from tasks.compatibility.models import KernelReading, SmiReading
from tasks.core.child_environment import Needs
from tasks.core.errors import CommandError
from tasks.core.facts import Gpu

_TIMEOUT_S = 30.0
"""nvidia-smi takes seconds if the driver has to wake many GPUs, and hangs if one has died."""

_SMI_FOLDERS = ("/usr/local/nvidia/bin", "/usr/lib/wsl/lib")
"""Where container runtimes and WSL put nvidia-smi outside PATH."""

_VERSION = r"([0-9]{1,5}(?:\.[0-9]{1,5}){1,3})(?![0-9.])"
_DRIVER = re.compile(rf"\b(?:Driver|KMD) Version\s*:\s*{_VERSION}")
_CUDA = re.compile(rf"\bCUDA (?:UMD )?Version\s*:\s*{_VERSION}")
_GPU_LINE = re.compile(r"^GPU [0-9]+: .*\(UUID: ", re.MULTILINE)
_NVCC = re.compile(rf"\brelease {_VERSION}, V")
_MODULE = re.compile(rf"\bKernel Module(?: for \S+)?\s+{_VERSION}")


def read_nvidia_smi() -> SmiReading | None:
    """Driver, CUDA and number of GPUs as nvidia-smi prints them; None if it is not installed."""
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SMI_FOLDERS])
    program = shutil.which("nvidia-smi", path=folders)
    if program is None:
        return None
    try:
        banner, listing = _ask(program), _ask(program, "-L")
    except CommandError as error:
        return SmiReading(fault=error.what)
    return parse_nvidia_smi(banner, listing)


def parse_nvidia_smi(banner: Finished, listing: Finished) -> SmiReading:
    """Read the banner and the list of GPUs. The banner's labels are Driver Version and CUDA Version; from driver
    610 on, KMD Version and CUDA UMD Version."""
    fault = next((_last_line(done) for done in (banner, listing) if done.code != 0), None)
    return SmiReading(
        driver=_first(_DRIVER, banner.stdout),
        cuda_driver=_first(_CUDA, banner.stdout),
        gpus=len(_GPU_LINE.findall(listing.stdout)) if listing.code == 0 else None,
        fault=fault and f"nvidia-smi: {fault}",
    )


def read_nvcc() -> str | None:
    """Version of the CUDA toolkit, from `$CUDA_HOME/bin/nvcc` or else from nvcc on PATH; None if neither answers."""
    home = os.environ.get("CUDA_HOME")
    in_home = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else None
    for program in filter(None, (in_home, shutil.which("nvcc"))):
        try:
            done = _ask(program, "--version")
        except CommandError:
            continue
        if version := parse_nvcc(done.stdout):
            return version
    return None


def parse_nvcc(text: str) -> str | None:
    """The release in `Cuda compilation tools, release 12.4, V12.4.131`."""
    return _first(_NVCC, text)


def read_kernel_module(
    root: Path = Path("/proc/driver/nvidia"), module: Path = Path("/sys/module/nvidia/version")
) -> KernelReading:
    """Version of the loaded kernel module and the GPUs that it drives; empty if it is not loaded.

    A container may see `/sys` but not `/proc/driver`, or neither. A part that it cannot see counts as absent.
    """
    version = parse_kernel_module(text_of(root / "version")) or _whole_version(text_of(module))
    try:
        files = sorted(root.glob("gpus/*/information"))
    except OSError:
        files = []
    gpus = (parse_gpu_information(text_of(file)) for file in files)
    return KernelReading(driver=version, gpus=tuple(gpu for gpu in gpus if gpu is not None))


def parse_kernel_module(text: str) -> str | None:
    """The version in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.154.05  Thu Dec 28 …`."""
    return _first(_MODULE, text)


def parse_gpu_information(text: str) -> Gpu | None:
    """The GPU that a file `/proc/driver/nvidia/gpus/*/information` describes; None if it names no model."""
    lines = (line.partition(":") for line in text.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    name = fields.get("Model")
    return Gpu(name=name, uuid=fields.get("GPU UUID")) if name else None


def _whole_version(text: str) -> str | None:
    match = re.fullmatch(_VERSION, text.strip())
    return match[1] if match else None


def text_of(file: Path) -> str:
    """The text of a kernel file; empty if it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match[1] if match else None


def _ask(program: str, *arguments: str) -> Finished:
    return run([program, *arguments], timeout_s=_TIMEOUT_S, needs=(Needs.COMPUTE,))


def _last_line(done: Finished) -> str:
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1][:200] if lines else f"exited with {done.code} and printed nothing"
