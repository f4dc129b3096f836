"""Whether code for a GPU exists: in torch's wheels, or from the compilers that engines call at run time. Pure."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.version import Version

from tasks.compatibility.builds import index_name, torch_release
from tasks.compatibility.conditions import Value, contains, text_or_none
from tasks.compatibility.rules import JitRow, KernelsRow, ReleaseRow, Tables, TritonRow
from tasks.core.cuda_packages import is_published_torch
from tasks.core.facts import Facts
from tasks.core.versions import same_minor

_X86 = re.compile(r"\b(intel|amd|x86_64|amd64|xeon|epyc)\b|core\(tm\)", re.I)
_ARM = re.compile(
    r"\b(aarch64|arm64|armv[89]|neoverse|cortex|grace|altra|graviton|kunpeng|tegra|carmel)\b", re.I
)
_ARM_GPUS = re.compile(r"\b(GB10|GB200|GB300|GH200|Orin|T4G|Thor|Xavier)\b")
"""GPUs that exist only with an Arm processor."""

_JETSON = frozenset({"5.3", "6.2", "7.2", "8.7"})
"""Integrated GPUs, which machine code for another minor version runs on only from `_ONE_ARM` on."""
_TEGRA = _JETSON | {"10.1", "11.0"}
_ONE_ARM = Version("13.2")
"""Programs for Arm servers run on Jetson from this CUDA on (torch/cuda/__init__.py of 2.15, DEVICE_REQUIREMENT)."""
_BLACKWELL = Version("10.0")
_TRITON_PACKAGES = ("triton", "pytorch-triton")
_FLASHINFER, _JIT_CACHE = "flashinfer-python", "flashinfer-jit-cache"
_JIT_ENGINES = frozenset({"sglang", "triton-vllm", "vllm"})
_WITHOUT_TORCH = frozenset({"dify", "llama.cpp", "ollama"})

MISSING, UNLISTED = "missing", "unlisted"
"""Code that a build does not contain; and a build that is not in the table."""


@dataclass(frozen=True)
class Stack:
    """The software, read once for all GPUs of a host. `torch` is None if PyTorch did not build it, or
    the engine does not use it."""

    tables: Tables
    facts: Facts
    platform: str | None
    engine: str | None
    engine_version: str | None
    torch: str | None
    cuda: str | None
    driver_cuda: str | None
    triton: str | None
    triton_row: TritonRow | None

    def values(self) -> dict[str, Value]:
        """Fields that are the same for all GPUs."""
        known: dict[str, Value] = {"triton": self.triton, "compiles": self._compiles()}
        return known | ({"platform": self.platform} if self.platform else {})

    def of_gpu(self, capability: str) -> dict[str, Value]:
        """Fields of one GPU of that compute capability."""
        return {**self._torch(capability), **self._triton(capability), **self._jit(capability)}

    def instead(self, capabilities: Sequence[str]) -> str:
        """The nearest listed software with code for all these GPUs, as text."""
        if not _JETSON.isdisjoint(capabilities) and not self._driver_runs(str(_ONE_ARM)):
            return "a torch that NVIDIA built for Jetson (https://pypi.jetson-ai-lab.io)"
        found = self._engine_instead(capabilities) or self._torch_instead(capabilities)
        return found or f"torch compiled for {', '.join(capabilities)}"

    def _torch(self, capability: str) -> dict[str, Value]:
        """A CUDA build that PyTorch did not make of a release is judged by those that it made."""
        if self.torch is None or self.cuda is None:
            return {"gpu.torch_kernels": None}
        rows = builds_of(self.tables, self.torch, self.cuda, self.platform)
        others = [] if rows else builds_of(self.tables, self.torch, None, self.platform or "x86_64")
        answers = {_code_for(capability, row, self.driver_cuda) for row in rows or others} or {UNLISTED}
        if len(answers) > 1 and rows:
            return {}
        answer = answers.pop() if len(answers) == 1 else UNLISTED
        if answer == MISSING and capability in _TEGRA and not Version(self.torch).local:
            answer = UNLISTED
        found = ", ".join((rows or others)[-1].machine_code) if rows or others else None
        return {"gpu.torch_kernels": answer, "gpu.torch_has": found}

    def _triton(self, capability: str) -> dict[str, Value]:
        row, own = self.triton_row, own_cuda(capability, self.tables)
        if row is None or own is None:
            return {"gpu.triton": None}
        ptxas = _ptxas(row, capability)
        values: dict[str, Value] = {
            "gpu.own_cuda": own,
            "gpu.triton_ptxas": ptxas,
            "gpu.triton_variable": row.variable,
            "gpu.triton_from": self._triton_from(capability, own),
        }
        if Version(ptxas) >= Version(own):
            return {"gpu.triton": "own", **values}
        nvcc = self.facts.nvcc
        has_newer = not self.facts.known("nvcc") or (nvcc is not None and Version(nvcc) >= Version(own))
        return {"gpu.triton": "toolkit" if has_newer else MISSING, **values}

    def _triton_from(self, capability: str, own: str) -> str:
        """The first Triton that compiles for a GPU, and the release of torch that pins it, as text."""
        rows = self.tables.triton
        able = next((row.since for row in rows if Version(_ptxas(row, capability)) >= Version(own)), None)
        if able is None:
            return "a newer Triton"
        pins = (row for row in self._torches() if row.triton and contains(f">={able}", row.triton))
        torch = next((row.version for row in pins), None)
        return f"Triton {able} or newer" + (f" (torch {torch} or newer pins it)" if torch else "")

    def _jit(self, capability: str) -> dict[str, Value]:
        part = next(self._parts(capability), None)
        return {
            "gpu.nvcc": self._nvcc(capability),
            "gpu.jit": part.part if part else None,
            "gpu.jit_without": part.without if part else None,
        }

    def _parts(self, capability: str) -> Iterator[JitRow]:
        """What is compiled at start for a GPU, if FlashInfer is installed without its compiled kernels."""
        version, packages = self.engine_version, self.facts.packages
        compiled = "torch" in (Version(packages.get(_FLASHINFER, "0")).local or "")
        if _FLASHINFER not in packages or _JIT_CACHE in packages or compiled:
            return
        for row in self.tables.jit:
            if row.engine != self.engine or version is None or not contains(row.capability, capability):
                continue
            if contains(f">={row.since}", version) and (
                row.before is None or contains(f"<{row.before}", version)
            ):
                yield row

    def _nvcc(self, capability: str) -> str | None:
        own = own_cuda(capability, self.tables)
        packages = self.facts.packages
        wanted = [
            row.nvcc
            for row in self.tables.nvcc
            if row.cc == capability
            and (row.package in packages and contains(f">={row.since}", packages[row.package]))
        ]
        return max([*wanted, *([own] if own else [])], key=Version, default=None)

    def _compiles(self) -> str | None:
        """What compiles with nvcc at run time: FlashInfer, whether it is among the packages or only required."""
        if self.engine not in _JIT_ENGINES:
            return None
        if version := self.facts.packages.get(_FLASHINFER):
            return f"FlashInfer {version}"
        first = next((row.flashinfer for row in self.tables.engines if row.name == self.engine), None)
        required = first and self.engine_version and contains(f">={first}", self.engine_version)
        return "FlashInfer" if required else "DeepGEMM" if "deep-gemm" in self.facts.packages else None

    def _engine_instead(self, capabilities: Sequence[str]) -> str | None:
        """The nearest release of the engine whose torch, as the index gives it, has the code."""
        own = [row for row in self.tables.releases if row.package == self.engine and row.torch]
        current = Version(self.engine_version) if self.engine_version else None
        place = sum(current is not None and Version(row.version) <= current for row in own)
        for _, row in sorted(enumerate(own, 1), key=lambda one: abs(one[0] - place)):
            torch = torch_release(row.torch, self.tables) if row.torch else None
            cuda = torch and next(iter(cuda_builds(self.tables, torch, self.platform)), None)
            if (
                torch
                and cuda
                and self._driver_runs(cuda)
                and self._has_code(torch.version, cuda, capabilities)
            ):
                return f"{row.package} {row.version} with torch {row.torch}+{index_name(cuda)}"
        return None

    def _torch_instead(self, capabilities: Sequence[str]) -> str | None:
        """A build of the same release of torch, else of the nearest; of a CUDA that the driver runs if possible."""
        torches = self._torches()
        place = sum(Version(row.version) <= Version(self.torch or "0") for row in torches)
        for _, row in sorted(enumerate(torches, 1), key=lambda one: abs(one[0] - place)):
            able = [
                cuda
                for cuda in cuda_builds(self.tables, row, self.platform)
                if self._has_code(row.version, cuda, capabilities)
            ]
            able.sort(key=self._driver_runs, reverse=True)
            if able:
                same = self.torch and same_minor(row.version, self.torch)
                version = Version(self.torch).public if same and self.torch else row.version
                return f"torch {version}+{index_name(able[0])}"
        return None

    def _driver_runs(self, cuda: str) -> bool:
        return self.driver_cuda is None or Version(cuda).major <= Version(self.driver_cuda).major

    def _torches(self) -> list[ReleaseRow]:
        return [row for row in self.tables.releases if row.package == "torch"]

    def _has_code(self, torch: str, cuda: str, capabilities: Sequence[str]) -> bool:
        rows = builds_of(self.tables, torch, cuda, self.platform or "x86_64")
        return any(
            all(_code_for(capability, row, self.driver_cuda) != MISSING for capability in capabilities)
            for row in rows
        )


def read_stack(facts: Facts, tables: Tables, values: Mapping[str, Value]) -> Stack:
    """The software of these facts; `values` are the fields that do not depend on it."""
    engine, torch = text_or_none(values.get("engine")), facts.packages.get("torch")
    torch = torch if torch and _of_pytorch(torch) and engine not in _WITHOUT_TORCH else None
    triton = _triton_of(facts, torch, tables)
    return Stack(
        tables=tables,
        facts=facts,
        platform=platform_of(facts),
        engine=engine,
        engine_version=text_or_none(values.get("engine_version")),
        torch=torch,
        cuda=text_or_none(values.get("cuda_build")),
        driver_cuda=text_or_none(values.get("driver_cuda")),
        triton=triton,
        triton_row=_row_of(triton, tables.triton),
    )


def platform_of(facts: Facts) -> str | None:
    """`x86_64` or `aarch64`, as far as the processor, the kernel or the GPUs tell; None if they do not."""
    text = f"{facts.cpu or ''} {facts.kernel or ''}"
    if _ARM.search(text) or any(_ARM_GPUS.search(gpu.name) for gpu in facts.gpus):
        return "aarch64"
    return "x86_64" if _X86.search(text) else None


def cuda_builds(tables: Tables, release: ReleaseRow, platform: str | None) -> tuple[str, ...]:
    """CUDA builds of a release of torch on a platform, the index's default first; all of them if the table of kernels
    does not list the release."""
    listed = [row for row in tables.kernels if _covers(row, release.version)]
    here = {row.cuda for row in listed if row.platform == (platform or "x86_64")}
    return tuple(cuda for cuda in release.cuda if not listed or cuda in here)


def builds_of(tables: Tables, torch: str, cuda: str | None, platform: str | None) -> list[KernelsRow]:
    """The rows about one build of torch, or about all builds of that release if no CUDA is given: for one platform,
    or for both if it is not known."""
    return [
        row
        for row in tables.kernels
        if cuda in (None, row.cuda) and platform in (None, row.platform) and _covers(row, torch)
    ]


def own_cuda(capability: str, tables: Tables) -> str | None:
    """The first CUDA that compiles for exactly this capability."""
    return next((row.min_cuda for row in tables.capabilities if row.cc == capability), None)


def _covers(row: KernelsRow, torch: str) -> bool:
    return _minor(row.since) <= _minor(torch) <= _minor(row.until)


@functools.lru_cache(maxsize=256)
def _minor(version: str) -> tuple[int, ...]:
    return Version(version).release[:2]


def _code_for(capability: str, row: KernelsRow, driver_cuda: str | None) -> str:
    """How a GPU runs this build: with machine code, with PTX that a new enough driver compiles, or not at all."""
    if any(_runs(code, capability, row.cuda) for code in row.machine_code):
        return "machine code"
    compiled = row.ptx is not None and contains(f">={row.ptx}", capability)
    driver = driver_cuda is not None and contains(f">={row.cuda}", driver_cuda)
    return "ptx" if compiled and driver else MISSING


def _runs(code: str, capability: str, cuda: str) -> bool:
    if code != capability and capability in _JETSON and Version(cuda) < _ONE_ARM:
        return False
    (major, minor), (own_major, own_minor) = _minor(code), _minor(capability)
    return major == own_major and minor <= own_minor


def _ptxas(row: TritonRow, capability: str) -> str:
    newer = Version(capability) >= _BLACKWELL
    return row.blackwell_ptxas if newer and row.blackwell_ptxas else row.ptxas


def _triton_of(facts: Facts, torch: str | None, tables: Tables) -> str | None:
    """The Triton among the packages, else the one that torch pins; None if it is somebody's own build."""
    for name in _TRITON_PACKAGES:
        if name in facts.packages:
            return facts.packages[name] if not Version(facts.packages[name]).local else None
    release = torch_release(torch, tables) if torch else None
    return release.triton if release else None


def _row_of(triton: str | None, rows: Sequence[TritonRow]) -> TritonRow | None:
    found = [row for row in rows if triton and contains(f">={row.since}", triton)]
    return found[-1] if found else None


def _of_pytorch(torch: str) -> bool:
    """Whether it is, or may be, one of PyTorch's CUDA builds."""
    local = Version(torch).local
    return is_published_torch(torch) and (local is None or local.startswith("cu"))
