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
_DATE = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} +[0-9]{1,2} [0-9:]{8} ")
_CODE_INFOROM = 14
"""nvidia-smi's exit code for a corrupted infoROM: a warning, the GPU works."""
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
    failed = next((done for done in (banner, listing) if done.code != 0), None)
    line = f"nvidia-smi: {_complaint(failed)}" if failed else None
    works = failed is not None and failed.code == _CODE_INFOROM and "infoROM" in str(line)
    return SmiReading(
        driver=_first(_DRIVER, banner.stdout),
        cuda_driver=_first(_CUDA, banner.stdout),
        gpus=len(_GPU_LINE.findall(listing.stdout)) if listing.code == 0 else None,
        fault=None if works else line,
        warning=line if works else None,
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
    texts = [text for file in files if (text := text_of(file))]
    gpus = map(parse_gpu_information, texts)
    return KernelReading(
        driver=version, gpus=tuple(gpu for gpu in gpus if gpu is not None), listed=len(texts)
    )


def parse_kernel_module(text: str) -> str | None:
    """The version in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.154.05  Thu Dec 28 …`."""
    return _first(_MODULE, text)


def parse_gpu_information(text: str) -> Gpu | None:
    """The GPU that a file `/proc/driver/nvidia/gpus/*/information` describes; None if it names no model:
    a GPU that was not initialised is called Unknown, and its UUID is question marks."""
    lines = (line.partition(":") for line in text.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    name = fields.get("Model")
    uuid = fields.get("GPU UUID")
    return Gpu(name=name, uuid=None if uuid and "?" in uuid else uuid) if name and name != "Unknown" else None


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


def _complaint(done: Finished) -> str:
    """The first line that is not part of the table: from driver 525 on, a second one follows with versions."""
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines()]
    said = [line for line in lines if line and not line.startswith(("|", "+")) and not _DATE.match(line)]
    return (
        said[0].partition(". ")[0].removesuffix(".")[:200]
        if said
        else f"exited with {done.code} and printed nothing"
    )
