"""From facts to the fields that rules use: one name for each thing, and what the tables add to what was read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from packaging.version import Version

from tasks.compatibility import builds, drivers
from tasks.compatibility.conditions import Subject, Value, contains, text_or_none
from tasks.compatibility.devices import describe_device, fabric, fault_row
from tasks.compatibility.drivers import Drivers
from tasks.compatibility.engines import find_engine, is_cpu_build, with_engine
from tasks.compatibility.installed import describe_packages
from tasks.compatibility.kernels import MISSING, Stack, read_stack
from tasks.compatibility.models import CudaLibraryReading, Sighting, Survey
from tasks.compatibility.requirement import first_demand, is_satisfied
from tasks.compatibility.rules import BuildRow, GpuRow, Tables
from tasks.compatibility.weights import (
    UNKNOWN,
    ServedModel,
    describe_room,
    describe_serving,
    find_type,
)
from tasks.core.cuda_packages import local_cuda
from tasks.core.facts import Facts, Gpu
from tasks.core.versions import major_minor

_WORDS = re.compile(r"[A-Za-z0-9]+")
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
_LIBRARY = re.compile(r"/libcuda\.so\.([0-9]{3}(?:\.[0-9]{1,4}){1,2})$")
_NO_CUDA = "no CUDA"
_BY_CAPABILITY = ("gpu.jit", "gpu.nvcc", "gpu.torch_kernels", "gpu.triton")
"""Fields that no rule asks for without a compute capability: that decides by itself."""
_NO_COMPAT: Mapping[str, Value] = {"compat_fit": None, "compat_cuda": None, "compat_branch": None}
_FIRST_ARM_CUDA = Version("13.0")
"""From then on Jetson runs the wheels of other Arm hosts; before, it has its own, and their versions do not tell."""
_TEGRA_SERIES = frozenset({"driver", "driver_branch"})
_UNLISTED = "unlisted"
"""Whether cuda-compat runs on the GPU: not in the table."""


def describe(survey: Survey, tables: Tables) -> Subject:
    """What the rules can ask about a host and what is to run there. A fact that is not known stays unknown."""
    facts = _with_named_build(survey.facts)
    values: dict[str, Value] = {name: getattr(facts, name) for name in _PASSED_ON if facts.known(name)}
    own = drivers_of(facts, tables)
    values |= _host(survey, tables)
    if facts.known("family"):
        values["family"] = facts.family and facts.family.lower()
    if facts.known("dtype"):
        row = find_type(facts.dtype, tables)
        values["dtype"] = row.name if row else facts.dtype and facts.dtype.lower()
    for name in ("cuda_build", "nvcc"):
        if facts.known(name):
            version = getattr(facts, name)
            values[name] = version and major_minor(version)
    values |= _driver(own, values)
    if facts.cuda_build:
        values["build_branch"] = _first_branch(facts.cuda_build, tables)
    if facts.known("engine"):
        values |= _engine(facts, tables)
    values["cpu_build"] = is_cpu_build(facts, tables)
    if facts.known("packages"):
        values |= describe_packages(facts, tables)
    engine = find_engine(facts.engine, tables)
    values |= _containers(facts, values, own_cuda=engine is not None and engine.own_cuda)
    values |= _gpus(facts, values, tables)
    values |= _image(facts, values)
    stack = read_stack(facts, tables, values)
    values |= stack.values()
    gpus = _describe_gpus(stack, values) if facts.known("gpus") else None
    values |= describe_room(facts, text_or_none(values.get("dtype")), gpus or (), tables)
    return Subject(
        values=values,
        gpus=gpus,
        packages=facts.packages if facts.known("packages") else None,
        own_series=_TEGRA_SERIES if own.tegra else frozenset(),
        drivers=own,
    )


def _with_named_build(facts: Facts) -> Facts:
    """The facts with the CUDA that the engine's own version names (`b4664+cu128`), where nothing else tells it."""
    version = facts.engine_version
    named = local_cuda(version) if version and "torch" not in facts.packages else None
    return facts.model_copy(update={"cuda_build": named}) if named and facts.cuda_build is None else facts


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


def _host(survey: Survey, tables: Tables) -> dict[str, Value]:
    differing = disagreements(survey.sightings)
    found: dict[str, Value] = {f"saw.{fact}": text for fact, text in differing.items()}
    if survey.fault is not None:
        row = fault_row(survey.fault, tables)
        found["fault_meaning"] = row.meaning
        found["fault_fix"] = row.container_fix if survey.facts.container else row.fix
    return {
        "disagreement": tuple(differing),
        "host_fault": survey.fault,
        "host_warning": survey.warning,
        **found,
    }


def _driver(own: Drivers, values: Mapping[str, Value]) -> dict[str, Value]:
    """The driver's CUDA and branch, and what the loaded cuda-compat adds to it. cuda-compat of unknown CUDA counts as
    that of the packages; whether it is loaded matters only if the driver does not support them natively."""
    facts, tables = own.facts, own.tables
    native = drivers.native_cuda(facts, tables, own.tegra)
    own_wheels = own.tegra and native is not None and Version(native) < _FIRST_ARM_CUDA
    found: dict[str, Value] = {"tegra": own.tegra, "jetson_wheels": own_wheels}
    found |= {"wsl": drivers.is_wsl(facts), "wsl_kernel": drivers.wsl_kernel(facts)}
    found["library_odd"] = drivers.odd_library(facts, own.tegra)
    if facts.known("driver") and (native is not None or facts.driver is None or not own.tegra):
        found["driver_cuda"] = native
    if facts.driver is not None:
        found["driver_branch"] = str(Version(facts.driver).major)
    build = values.get("cuda_build")
    if isinstance(build, str) and native is not None:
        found["cuda_major"] = "same" if drivers.same_major(build, native) else "newer"
    elif "cuda_build" in values:
        found["cuda_major"] = None
    needed = isinstance(build, str) and native is not None and Version(build) > Version(native)
    if not facts.forward_compat:
        return found if needed and not facts.known("forward_compat") else {**found, **_NO_COMPAT}
    offered = major_minor(facts.cuda_driver) if facts.cuda_driver else str(build) if needed else None
    fit = drivers.compat_fit(facts, native, offered, tables, own.tegra)
    if fit is None:
        return found
    row, branch = drivers.compat_row(offered, tables), drivers.branch_of(offered, tables)
    return {
        **found,
        "compat_fit": fit,
        "compat_cuda": offered if fit != "older" else None,
        "compat_branch": str(branch) if branch and fit != "older" and not own.tegra else None,
        "compat_drivers": ", ".join(f"R{one}" for one in row.drivers) if row else None,
    }


def _gpus(facts: Facts, values: Mapping[str, Value], tables: Tables) -> dict[str, Value]:
    """What the GPUs are wanted for, and the state of the fabric that connects them. Where no package tells the build,
    an nvcc on the host and a cuda-compat that is loaded show that it uses CUDA."""
    row = find_engine(facts.engine, tables)
    loaded = facts.forward_compat and not facts.packages and facts.nvcc is not None
    without = (
        facts.known("cuda_build") and facts.cuda_build is None and not (row and row.own_cuda) and not loaded
    )
    return {
        "gpu_unused": without or values.get("cpu_build") is True,
        "several_gpus": (facts.gpus_wanted or 0) > 1,
        "fabric": fabric(facts, tables),
        "fabric_manager": facts.fabric_manager_version,
    }


def _containers(facts: Facts, values: Mapping[str, Value], *, own_cuda: bool) -> dict[str, Value]:
    """Where the service is to run, and where the survey ran. Rules about containers apply only if the target
    is known.

    If no number of GPUs is given, the engine and its build decide whether one is wanted, and whether the engine
    serves without. Who installs a torch for CUDA does not want it on the processor.
    """
    wanted = facts.gpus_wanted
    built = facts.cuda_build is not None and not values.get("cpu_build")
    implied = values.get("needs_gpu") is True or built
    without_torch = built and builds.TORCH not in facts.packages
    found: dict[str, Value] = {
        "container": facts.container,
        "target": facts.target and facts.target.lower(),
        "wants_gpu": implied if wanted is None else wanted > 0,
        "gpu_optional": wanted is None and values.get("needs_gpu") is False and (own_cuda or without_torch),
    }
    if facts.known("container_gpus"):
        found["container_gpus"] = facts.container_gpus or None
    return found


def _image(facts: Facts, values: Mapping[str, Value]) -> dict[str, Value]:
    """Whether the container toolkit would start the image: `accepted`, `refused`, or `not-read` in a container whose
    image is not known. Docker's own CDI support does not check what an image demands."""
    if values.get("target") != "docker" or values.get("container_gpus") == ("cdi",):
        return {"image_check": None}
    if not facts.known("image_requires"):
        return {"image_check": "not-read"}
    versions = {"cuda": values.get("driver_cuda"), "driver": facts.driver}
    known = {name: str(version) for name, version in versions.items() if version}
    names = [gpu.name for gpu in facts.gpus]
    if facts.gpus and facts.gpus[0].compute_capability:
        known["arch"] = facts.gpus[0].compute_capability
    answer = is_satisfied(facts.image_requires, known, names)
    if answer is None:
        return {}
    return {
        "image_check": "accepted" if answer else "refused",
        "image_demand": first_demand(facts.image_requires),
    }


def _first_branch(cuda: str, tables: Tables) -> str | None:
    """The first driver branch that supports this CUDA natively."""
    wanted = Version(major_minor(cuda))
    return next((str(row.branch) for row in tables.branches if Version(row.cuda) >= wanted), None)


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


def native_cuda(facts: Facts, tables: Tables) -> str | None:
    """The newest CUDA that the kernel driver supports without any compatibility layer."""
    return drivers.native_cuda(facts, tables, drivers_of(facts, tables).tegra)


def drivers_of(facts: Facts, tables: Tables) -> Drivers:
    """What may be said about another driver for this host."""
    capabilities = tuple(capability_of(gpu, tables) for gpu in facts.gpus)
    return Drivers(
        facts,
        tables,
        capabilities,
        tegra=drivers.is_tegra(facts, capabilities, tables),
        virtual=any(describe_device(gpu)["gpu.virtual"] is not None for gpu in facts.gpus),
    )


def library_version(library: CudaLibraryReading) -> str | None:
    """The driver's version in the name of its library, `libcuda.so.575.57.08`; WSL's and Tegra's have none."""
    match = _LIBRARY.search(library.path)
    return match[1] if match else None


def is_forward_compat(library: CudaLibraryReading, driver: str | None, tables: Tables) -> bool:
    """Whether that user-mode driver is from cuda-compat: its folder says so, or it offers a newer CUDA than the
    kernel driver that it runs on."""
    if _COMPAT_FOLDER.search(library.path):
        return True
    native = native_cuda(Facts(driver=driver, cuda_driver=library.cuda), tables)
    return native is not None and library.cuda is not None and Version(library.cuda) > Version(native)


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


def _describe_gpus(stack: Stack, values: Mapping[str, Value]) -> list[dict[str, Value]]:
    """The fields of each GPU; those of equal GPUs are derived once."""
    facts, tables = stack.facts, stack.tables
    model = ServedModel(
        engine=text_or_none(values.get("engine")),
        version=values.get("engine_version", UNKNOWN) or UNKNOWN,
        cuda=values.get("cuda_build", UNKNOWN),
        family=values.get("family", UNKNOWN),
        dtype=text_or_none(values.get("dtype")),
    )
    seen: dict[tuple[str, str | None], dict[str, Value]] = {}
    for gpu in facts.gpus:
        key = (gpu.name, gpu.compute_capability)
        if key not in seen:
            fields = seen[key] = _describe_gpu(gpu, tables)
            capability = text_or_none(fields.get("gpu.compute_capability"))
            fields |= stack.of_gpu(capability) if capability else dict.fromkeys(_BY_CAPABILITY)
            fields |= dict(describe_serving(model, capability, tables))
            found = _without_code(facts, model, capability, tables) if capability else None
            fields["gpu.no_code"], row = found or (None, None)
            fields["gpu.no_code_way"] = (row and row.instead) or "a newer release"
    capabilities = {
        str(gpu["gpu.compute_capability"]) for gpu in seen.values() if "gpu.compute_capability" in gpu
    }
    for fields in seen.values():
        if fields.get("gpu.torch_kernels") == MISSING:
            fields["gpu.torch_instead"] = stack.instead(sorted(capabilities, key=Version))
    return [seen[gpu.name, gpu.compute_capability] for gpu in facts.gpus]


def _without_code(
    facts: Facts, model: ServedModel, capability: str, tables: Tables
) -> tuple[str, BuildRow] | None:
    """The first package without code for that GPU, the engine itself included."""
    lacking = builds.without_code(
        with_engine(facts, tables),
        model.engine,
        model.dtype,
        capability,
        tables,
        in_container=facts.container is not None,
    )
    return next(lacking, None)


def capability_of(gpu: Gpu, tables: Tables) -> str | None:
    """The GPU's compute capability, by its name if it did not tell."""
    return gpu.compute_capability or _capability_by_name(_rows_of(gpu, tables))


def _rows_of(gpu: Gpu, tables: Tables) -> list[GpuRow]:
    words = {word.lower() for word in _WORDS.findall(gpu.name)}
    return [row for row in tables.gpus if row.word.lower() in words]


def _describe_gpu(gpu: Gpu, tables: Tables) -> dict[str, Value]:
    rows = _rows_of(gpu, tables)
    values: dict[str, Value] = {"gpu.name": gpu.name, **describe_device(gpu)}
    values["gpu.forward_compat"] = rows[0].forward_compat if rows else _UNLISTED
    capability = gpu.compute_capability or _capability_by_name(rows)
    if capability is not None:
        values["gpu.compute_capability"] = capability
        values["gpu.min_cuda"], values["gpu.last_cuda"] = _cuda_range(capability, tables)
        last = next((row.last_branch for row in tables.capabilities if row.cc == capability), None)
        values["gpu.last_branch"] = str(last) if last else None
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
