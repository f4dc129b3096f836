"""Survey a host: ask every source, and keep who said what, so that two that disagree are seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from tasks.compatibility.models import (
    CUDA_LIBRARY,
    CompatibilityRequest,
    CompatibilityResult,
    CudaLibraryReading,
    FabricReading,
    KernelReading,
    NvmlReading,
    Sighting,
    SmiReading,
    Survey,
    SystemReading,
    TablesCheck,
    TablesIdentity,
    TegraReading,
    ToolkitReading,
    TorchReading,
)
from tasks.compatibility.plan import complete, with_table_check
from tasks.compatibility.rules import load_tables
from tasks.compatibility.subject import is_forward_compat, library_version
from tasks.compatibility.way_out import advise
from tasks.core.errors import CommandError
from tasks.core.facts import Disk, Facts, Gpu
from tasks.core.progress import say
from tasks.core.verdicts import StageName
from tasks.core.workers import WorkerRunner

_READ_TORCH = Path(__file__).parent / "worker" / "read_torch.py"


class Host(Protocol):
    """Where facts come from. No method raises for something that is absent: that is an answer."""

    def nvml(self) -> NvmlReading:
        """The driver's management library."""

    def nvidia_smi(self) -> SmiReading | None:
        """The program nvidia-smi; None if it is not installed."""

    def kernel_driver(self) -> KernelReading:
        """The loaded kernel module."""

    def nvcc(self) -> str | None:
        """Version of the CUDA toolkit; None without one."""

    def cuda_library(self) -> CudaLibraryReading | None:
        """The user-mode driver that a program started here would load; None without one."""

    def container_toolkit(self) -> ToolkitReading:
        """NVIDIA's container toolkit and its CDI specifications."""

    def docker_runtimes(self) -> tuple[str, ...] | None:
        """Names of Docker's runtimes; None if no engine answers."""

    def tegra(self) -> TegraReading:
        """The board, if this is a Jetson: JetPack 5 and older have neither NVML nor nvidia-smi."""

    def fabric(self) -> FabricReading:
        """NVSwitch and NVIDIA's fabric manager."""

    def disks(self) -> tuple[Disk, ...]:
        """File systems that hold models and results."""

    def system(self) -> SystemReading:
        """Everything except the GPUs."""


class TableContract(Protocol):
    """The contract on the fact tables that come with Slipway."""

    @property
    def identity(self) -> TablesIdentity:
        """What its answer depends on; known before the check."""

    def check(self) -> TablesCheck:
        """The answer, and its page. Raises `SlipwayError` if the tables cannot be read."""


def survey_host(host: Host) -> Survey:
    """Facts of `host`, and for those with two sources, the sighting of each.

    The kernel driver is named by NVML, else by the kernel module, else by nvidia-smi, on a Jetson also by L4T. The
    facts say so if there is no GPU, driver or toolkit; a source that cannot be understood leaves its fact unknown.
    If the driver is installed but does not answer, `fault` says why, and the GPUs are those that the kernel module
    names.
    The user-mode driver and Docker are asked only if there is a driver.
    """
    nvml, smi, kernel = host.nvml(), host.nvidia_smi(), host.kernel_driver()
    nvcc, system, toolkit = host.nvcc(), host.system(), host.container_toolkit()
    board = host.tegra()
    driver = nvml.driver or kernel.driver or (smi.driver if smi else None) or board.l4t
    here = driver is not None or nvml.available
    library = host.cuda_library() if here else None
    runtimes = host.docker_runtimes() if here else ()
    broken = _fault(nvml, smi, kernel, system.container)
    known: dict[str, Any] = {
        "cuda_driver": nvml.cuda_driver or (smi.cuda_driver if smi else None) or (library and library.cuda),
        "nvcc": nvcc,
        "gpus": nvml.gpus or (_named(kernel) if broken else _of_board(board)),
        "disks": host.disks(),
        **_containers(toolkit, runtimes),
        **system.model_dump(),
    }
    if not known["gpus"] and (broken or _is_jetson(system, library)):
        del known["gpus"]
    understood = driver is not None or not (nvml.available or (smi and smi.fault is None))
    if understood:
        known["driver"] = driver
    if library is not None:
        known["forward_compat"] = is_forward_compat(library, driver, load_tables())
        if (version := library_version(library)) is not None:
            known["cuda_library"] = version
    known |= _fabric(nvml, host.fabric())
    sightings = _of_the_driver(nvml, smi, kernel, library)
    if system.container is None and nvml.gpus and _count(kernel):
        seen = str(_count(kernel))
        sightings.append(Sighting(fact="gpu_count", source="kernel module", value=seen))
    sightings.append(Sighting(fact="nvcc", source="nvcc", value=nvcc))
    if here:
        found = library and library.path
        sightings.append(Sighting(fact=CUDA_LIBRARY, source="dynamic loader", value=found))
    if toolkit.program is not None:
        sightings.append(Sighting(fact="container_toolkit", source=toolkit.program, value=toolkit.version))
    sightings.sort(key=lambda row: (row.fact, row.source))
    warning = smi.warning if smi else None
    return Survey(facts=Facts(**known), sightings=tuple(sightings), fault=broken, warning=warning)


def _fault(
    nvml: NvmlReading, smi: SmiReading | None, kernel: KernelReading, container: str | None
) -> str | None:
    """Why a driver that is installed does not answer.

    In a container, a kernel module that lists GPUs of which NVML sees none is one that was not given them; and
    nvidia-smi may be of the image, with no driver on the host.
    """
    said = smi.fault if smi else None
    if nvml.fault:
        return nvml.fault
    if not nvml.available:
        return said if kernel.driver or container is None else None
    if nvml.gpus or container is not None:
        return None
    count = _count(kernel)
    listed = (
        f"the kernel module lists {count} GPU{'' if count == 1 else 's'}, and NVML finds none"
        if count
        else None
    )
    return f"{listed} ({said})" if said and listed else said or listed


def _count(kernel: KernelReading) -> int:
    return max(kernel.listed, len(kernel.gpus))


def _named(kernel: KernelReading) -> tuple[Gpu, ...]:
    """A kernel module that could not initialise a GPU calls it Unknown."""
    return tuple(gpu for gpu in kernel.gpus if gpu.name != "Unknown")


def _of_board(board: TegraReading) -> tuple[Gpu, ...]:
    """The GPU inside the chip of a Jetson; its memory is the host's."""
    if board.chip is None:
        return ()
    model = (board.model or "Jetson").removeprefix("NVIDIA ")
    return (Gpu(name=f"{model} ({board.chip})"),)


def _is_jetson(system: SystemReading, library: CudaLibraryReading | None) -> bool:
    """Whether there is a GPU that none of the sources names: a Jetson whose device tree cannot be read."""
    return library is not None and "tegra" in f"{system.kernel} {library.path}"


def _fabric(nvml: NvmlReading, fabric: FabricReading) -> dict[str, Any]:
    """What is known about NVIDIA's fabric manager: GPUs that have joined the fabric prove that it runs. One GPU alone
    that has not may be passed through to a virtual machine, where it needs none."""
    joined = nvml.fabric if nvml.fabric or len(nvml.gpus) > 1 else None
    running = joined if joined is not None else fabric.running
    if running is None:
        return {}
    known: dict[str, Any] = {"fabric_manager": "running" if running else "stopped"}
    return known | ({"fabric_manager_version": fabric.version} if fabric.version else {})


def _containers(toolkit: ToolkitReading, runtimes: tuple[str, ...] | None) -> dict[str, Any]:
    """What is known about how containers get GPUs. If the Docker engine does not answer, that is unknown."""
    ways = [*(["cdi"] if toolkit.cdi else []), *(["nvidia-runtime"] if "nvidia" in (runtimes or ()) else [])]
    known: dict[str, Any] = {"container_gpus": ways} if ways or runtimes is not None else {}
    if toolkit.program is None or toolkit.version is not None:
        known["container_toolkit"] = toolkit.version
    return known


def _of_the_driver(
    nvml: NvmlReading, smi: SmiReading | None, kernel: KernelReading, library: CudaLibraryReading | None
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
    if library is not None:
        rows.append(Sighting(fact="cuda_driver", source="libcuda", value=library.cuda))
    return rows


def read_torch(python: Path, packages: Mapping[str, str], runner: WorkerRunner) -> TorchReading | None:
    """What the torch of that Python's environment reports; None, and nothing is started, without torch."""
    if "torch" not in packages:
        return None
    try:
        answer = runner.run_worker(python, _READ_TORCH)
    except CommandError as error:
        return TorchReading(fault=error.what)
    try:
        return TorchReading.model_validate_json(answer.stdout)
    except ValidationError:
        last = answer.stderr.strip().splitlines()[-1:]
        return TorchReading(
            fault=": ".join(
                [f"the answer cannot be read, and {python.name} exited with {answer.code}", *last]
            )[:300]
        )


def take_survey(host: Host, request: CompatibilityRequest, runner: WorkerRunner) -> Survey:
    """What this host is, from every source, and the torch of the environment if there is one already."""
    survey = survey_host(host)
    if request.python_path is not None:
        torch = read_torch(request.python_path, request.packages, runner)
        survey = survey.model_copy(update={"torch": torch})
    gpus = ", ".join(gpu.name for gpu in survey.facts.gpus) or "no GPU"
    say(StageName.COMPATIBILITY, f"surveyed: {gpus}, driver {survey.facts.driver or 'none'}")
    return survey


def judge(request: CompatibilityRequest, survey: Survey, contract: TableContract) -> CompatibilityResult:
    """The verdict on what is to run on the surveyed host, and whether the tables that it rests on hold."""
    result = advise(complete(request, survey), request.measurements)
    tables = contract.check()
    broken = ", ".join(table.table for table in tables.broken)
    said = f"broken by {broken}" if broken else "kept"
    say(StageName.COMPATIBILITY, f"contract on {len(tables.tables)} fact tables: {said}")
    return with_table_check(result, tables)
