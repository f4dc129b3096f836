"""Which GPUs each build of torch runs on, what each Triton compiles for, and what engines compile when they start.

Written from PyTorch's RELEASE.md, from the wheels, and from what the programs in them print, not from our tables.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from compatibility_cases import CASES, CURRENT, GONE, P100, V100, gpu

from tasks.compatibility.kernels import cuda_builds, platform_of
from tasks.compatibility.models import Survey
from tasks.compatibility.rules import ReleaseRow, Tables, load_tables
from tasks.compatibility.subject import describe
from tasks.core.facts import Facts

_ALL = "3.7 5.0 5.2 6.0 6.1 7.0 7.2 7.5 8.0 8.6 8.7 8.9 9.0 10.0 10.3 11.0 12.0 12.1 13.0"
GPUS = _ALL.split()
"""One of each generation, 13.0 for one that is still to come."""

LEGACY = "5.0 5.2 6.0 6.1 7.0 7.5 8.0 8.6 8.9 9.0"
TURING = "7.5 8.0 8.6 8.9 9.0 10.0 10.3 12.0 12.1"
VOLTA = f"7.0 {TURING}"
ARM, ARM_THOR = "8.0 8.6 8.9 9.0 10.0 10.3 12.0 12.1", "8.0 8.6 8.9 9.0 10.0 10.3 11.0 12.0 12.1"

RUNS: list[tuple[str, str, str, str]] = [
    ("2.0.1", "11.7", "x86_64", "3.7 5.0 5.2 6.0 6.1 7.0 7.5 8.0 8.6 8.9"),
    ("2.0.1", "11.8", "x86_64", f"3.7 {LEGACY}"),
    ("2.7.1", "11.8", "x86_64", f"3.7 {LEGACY}"),
    ("2.1.2", "12.1", "x86_64", LEGACY),
    ("2.5.1", "12.1", "x86_64", LEGACY),
    ("2.4.0", "12.4", "x86_64", LEGACY),
    ("2.6.0", "12.4", "x86_64", LEGACY),
    ("2.6.0", "12.6", "x86_64", LEGACY),
    ("2.14.1", "12.6", "x86_64", LEGACY),
    ("2.7.1", "12.8", "x86_64", f"{TURING} 13.0"),
    ("2.8.0", "12.8", "x86_64", VOLTA),
    ("2.10.0", "12.8", "x86_64", VOLTA),
    ("2.11.0", "12.8", "x86_64", TURING),
    ("2.8.0", "12.9", "x86_64", f"{VOLTA} 13.0"),
    ("2.10.0", "12.9", "x86_64", f"{VOLTA} 13.0"),
    ("2.11.0", "12.9", "x86_64", f"{TURING} 13.0"),
    ("2.13.0", "12.9", "x86_64", TURING),
    ("2.9.1", "13.0", "x86_64", f"{TURING} 13.0"),
    ("2.11.0", "13.0", "x86_64", TURING),
    ("2.15.0", "13.0", "x86_64", TURING),
    ("2.12.1", "13.2", "x86_64", f"{TURING} 8.7"),
    ("2.15.0", "13.2", "x86_64", f"{TURING} 8.7"),
    ("2.15.0", "13.4", "x86_64", f"{TURING} 8.7"),
    ("2.4.1", "12.4", "aarch64", "9.0"),
    ("2.5.1", "12.4", "aarch64", "9.0"),
    ("2.6.0", "12.6", "aarch64", "9.0"),
    ("2.9.1", "12.6", "aarch64", "8.0 8.6 8.9 9.0"),
    ("2.14.1", "12.6", "aarch64", "8.0 8.6 8.9 9.0"),
    ("2.7.1", "12.8", "aarch64", "9.0 10.0 10.3 12.0 12.1"),
    ("2.9.1", "12.8", "aarch64", ARM),
    ("2.11.0", "12.8", "aarch64", ARM),
    ("2.8.0", "12.9", "aarch64", ARM),
    ("2.10.0", "12.9", "aarch64", f"{ARM} 13.0"),
    ("2.12.1", "12.9", "aarch64", ARM),
    ("2.13.0", "12.9", "aarch64", ARM),
    ("2.10.0", "13.0", "aarch64", f"{ARM_THOR} 13.0"),
    ("2.11.0", "13.0", "aarch64", ARM_THOR),
    ("2.15.0", "13.0", "aarch64", ARM_THOR),
    ("2.12.1", "13.2", "aarch64", f"{ARM_THOR} 8.7"),
    ("2.15.0", "13.4", "aarch64", f"{ARM_THOR} 8.7"),
]
COMPILES: list[tuple[str, str]] = [
    ("2.0.0", "5.0 5.2 6.0 6.1 7.0 7.5 8.0 8.6 8.7 8.9 9.0"),
    ("3.2.0", "5.0 5.2 6.0 6.1 7.0 7.5 8.0 8.6 8.7 8.9 9.0"),
    ("3.3.1", "5.0 5.2 6.0 6.1 7.0 7.5 8.0 8.6 8.7 8.9 9.0 10.0 12.0"),
    ("3.5.1", "5.0 5.2 6.0 6.1 7.0 7.5 8.0 8.6 8.7 8.9 9.0 10.0 12.0"),
    ("3.6.0", "5.0 5.2 6.0 6.1 7.0 7.5 8.0 8.6 8.7 8.9 9.0 10.0 10.3 12.0 12.1"),
    ("3.7.1", "5.0 5.2 6.0 6.1 7.0 7.5 8.0 8.6 8.7 8.9 9.0 10.0 10.3 11.0 12.0 12.1"),
    ("3.9.0", "5.0 5.2 6.0 6.1 7.0 7.5 8.0 8.6 8.7 8.9 9.0 10.0 10.3 11.0 12.0 12.1"),
]
ASSEMBLERS = {
    "2.0.0": ("12.0", "12.0"),
    "2.1.0": ("12.1", "12.1"),
    "2.3.1": ("12.3", "12.3"),
    "3.2.0": ("12.4", "12.4"),
    "3.3.1": ("12.4", "12.8"),
    "3.5.1": ("12.8", "12.8"),
    "3.6.0": ("12.8", "12.9"),
    "3.7.1": ("12.8", "13.1"),
    "3.8.0": ("12.9", "13.3"),
    "3.9.0": ("12.9", "13.4"),
}
"""Of Triton's wheels, what `ptxas --version` prints for Hopper and for Blackwell."""
STARTS: list[tuple[str, str, str, str | None]] = [
    ("vllm", "0.7.3", "8.9", None),
    ("vllm", "0.8.0", "8.9", "sampler"),
    ("vllm", "0.11.0", "8.9", "sampler"),
    ("vllm", "0.11.1", "8.9", None),
    ("vllm", "0.20.2", "8.9", None),
    ("vllm", "0.21.0", "8.9", "sampler"),
    ("vllm", "0.21.0", "7.0", None),
    ("vllm", "0.33.0", "8.9", "sampler"),
    ("sglang", "0.5.9", "8.9", "attention kernels"),
    ("sglang", "0.5.9", "9.0", None),
    ("sglang", "0.4.2", "12.0", None),
    ("sglang", "0.4.5", "9.0", "attention kernels"),
    ("sglang", "0.4.6", "12.0", "attention kernels"),
    ("sglang", "0.5.10", "9.0", "sampler"),
    ("transformers", "5.17.0", "8.9", None),
]
NVCC: list[tuple[str | None, str, str]] = [
    (None, "8.9", "11.8"),
    (None, "9.0", "11.8"),
    (None, "10.0", "12.8"),
    (None, "10.3", "12.9"),
    (None, "11.0", "13.0"),
    (None, "12.0", "12.8"),
    (None, "12.1", "12.9"),
    ("0.5.2", "9.0", "12.0"),
    ("0.5.2", "10.0", "12.8"),
    ("0.6.7", "12.0", "12.8"),
    ("0.6.8", "12.0", "12.9"),
]

PINS = {
    "2.0.1": "2.0.0",
    "2.1.2": "2.1.0",
    "2.2.2": "2.2.0",
    "2.3.1": "2.3.1",
    "2.4.1": "3.0.0",
    "2.5.1": "3.1.0",
    "2.6.0": "3.2.0",
    "2.7.1": "3.3.1",
    "2.8.0": "3.4.0",
    "2.9.1": "3.5.1",
    "2.10.0": "3.6.0",
    "2.11.0": "3.6.0",
    "2.12.1": "3.7.1",
    "2.13.0": "3.7.1",
    "2.14.1": "3.8.0",
    "2.15.0": "3.9.0",
}
"""The Triton that each torch requires, by the METADATA of its wheel on PyPI."""
OFFERED = {
    "2.3.1": ("12.1 11.8", ""),
    "2.5.1": ("12.4 11.8 12.1", "12.4"),
    "2.6.0": ("12.4 11.8 12.6", "12.6"),
    "2.7.1": ("12.6 11.8 12.8", "12.8"),
    "2.8.0": ("12.8 12.6 12.9", "12.9"),
    "2.9.1": ("12.8 12.6 13.0", "12.8 12.6 13.0"),
    "2.10.0": ("12.8 12.6 13.0", "12.8 12.6 13.0"),
    "2.11.0": ("13.0 12.6 12.8", "13.0 12.6 12.8"),
    "2.12.1": ("13.0 12.6 12.9 13.2", "13.0 12.6 12.9 13.2"),
    "2.13.0": ("13.0 12.6 12.9 13.2", "13.0 12.6 12.9 13.2"),
    "2.14.1": ("13.0 12.6 13.2", "13.0 12.6 13.2"),
    "2.15.0": ("13.2 13.0", "13.2 13.0"),
}
"""CUDA builds of torch for x86-64 and for Arm, that of PyPI first."""

Answers = dict[str, Any]


def fields(tables: Tables, capability: str, **facts: Any) -> Answers:
    return next(fields_of_each(tables, [capability], **facts))


def fields_of_each(tables: Tables, capabilities: list[str], **facts: Any) -> Iterator[Answers]:
    known = {
        "driver": "615.10",
        "cuda_driver": "13.4",
        "nvcc": None,
        "gpus": [gpu("a GPU", capability) for capability in capabilities],
        **facts,
    }
    found = describe(Survey(facts=Facts.model_validate(known)), tables)
    return ({**found.values, **one} for one in found.gpus or ())


def torch_runs(tables: Tables, torch: str, cuda: str, platform: str) -> str:
    facts = {"packages": {"torch": f"{torch}+cu{cuda.replace('.', '')}"}, "cuda_build": cuda, "cpu": platform}
    if platform == "x86_64":
        facts["cpu"] = "Intel(R) Xeon(R) Platinum 8480+"
    mark = {"machine code": "", "ptx": "", "unlisted": "?", "missing": None}
    each = zip(GPUS, fields_of_each(tables, GPUS, **facts), strict=True)
    marks = {cc: mark[found["gpu.torch_kernels"]] for cc, found in each}
    return " ".join(f"{cc}{mark}" for cc, mark in marks.items() if mark is not None)


def triton_compiles(tables: Tables, triton: str) -> str:
    """Without the GPUs on which no torch with a listed Triton runs."""
    own = (
        cc
        for cc in GPUS
        if cc not in ("3.7", "7.2") and fields(tables, cc, packages={"triton": triton})["gpu.triton"] == "own"
    )
    return " ".join(own)


def assemblers(tables: Tables, triton: str) -> tuple[str | None, str | None]:
    hopper, blackwell = (fields(tables, cc, packages={"triton": triton}) for cc in ("9.0", "10.0"))
    return hopper.get("gpu.triton_ptxas"), blackwell.get("gpu.triton_ptxas")


def starts(tables: Tables, engine: str, version: str, capability: str) -> str | None:
    facts = {"engine": engine, "engine_version": version, "packages": {"flashinfer-python": "0.5.2"}}
    part: str | None = fields(tables, capability, **facts)["gpu.jit"]
    return part


def nvcc(tables: Tables, flashinfer: str | None, capability: str) -> str | None:
    packages = {"flashinfer-python": flashinfer} if flashinfer else {}
    version: str | None = fields(tables, capability, packages=packages)["gpu.nvcc"]
    return version


def in_order(capabilities: str) -> str:
    return " ".join(sorted(capabilities.split(), key=GPUS.index))


@pytest.mark.parametrize(("torch", "cuda", "platform", "runs"), RUNS)
def test_torch_runs_on_the_gpus_that_pytorch_names(torch: str, cuda: str, platform: str, runs: str) -> None:
    assert torch_runs(load_tables(), torch, cuda, platform) == in_order(runs)


@pytest.mark.parametrize(("triton", "compiles"), COMPILES)
def test_triton_compiles_for_what_its_assembler_knows(triton: str, compiles: str) -> None:
    assert triton_compiles(load_tables(), triton) == in_order(compiles)


def test_triton_brings_the_assemblers_in_its_wheel() -> None:
    assert {version: assemblers(load_tables(), version) for version in ASSEMBLERS} == ASSEMBLERS


@pytest.mark.parametrize(("engine", "version", "capability", "part"), STARTS)
def test_an_engine_compiles_while_it_starts(
    engine: str, version: str, capability: str, part: str | None
) -> None:
    assert starts(load_tables(), engine, version, capability) == part


@pytest.mark.parametrize(("flashinfer", "capability", "version"), NVCC)
def test_nvcc_must_know_the_gpu(flashinfer: str | None, capability: str, version: str) -> None:
    assert nvcc(load_tables(), flashinfer, capability) == version


def _torch() -> dict[str, ReleaseRow]:
    return {row.version: row for row in load_tables().releases if row.package == "torch"}


def test_torch_pins_the_triton_of_its_metadata() -> None:
    assert {version: row.triton for version, row in _torch().items()} == PINS


@pytest.mark.parametrize("version", OFFERED)
def test_torch_is_offered_for_these_cudas(version: str) -> None:
    found = (cuda_builds(load_tables(), _torch()[version], platform) for platform in ("x86_64", "aarch64"))
    assert tuple(" ".join(cudas) for cudas in found) == OFFERED[version]


@pytest.mark.parametrize(
    ("facts", "platform"),
    [
        ({"cpu": "Intel(R) Xeon(R) Platinum 8480+"}, "x86_64"),
        ({"cpu": "13th Gen Intel(R) Core(TM) i9-13900K"}, "x86_64"),
        ({"cpu": "AMD EPYC 9354 32-Core Processor"}, "x86_64"),
        ({"cpu": "x86_64"}, "x86_64"),
        ({"cpu": "aarch64"}, "aarch64"),
        ({"cpu": "Neoverse-N1"}, "aarch64"),
        ({"kernel": "5.14.0-427.el9.aarch64"}, "aarch64"),
        ({"kernel": "5.15.148-tegra"}, "aarch64"),
        ({"kernel": "5.14.0-427.el9.x86_64"}, "x86_64"),
        ({"gpus": [gpu("NVIDIA GB10")]}, "aarch64"),
        ({"gpus": [gpu("NVIDIA GH200 480GB")]}, "aarch64"),
        ({"gpus": [gpu("NVIDIA B200")]}, None),
        ({"cpu": "Virtual CPU 82d9ed4018dd"}, None),
        ({"cpu": None, "kernel": None}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_platform_is_told_by_processor_kernel_or_gpu(facts: dict[str, Any], platform: str | None) -> None:
    assert platform_of(Facts.model_validate(facts)) == platform


INSTEAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "another build of the same release",
        {"gpus": [P100], "packages": {"torch": "2.10.0+cu128"}, "cuda_build": "12.8"},
        "torch 2.10.0+cu126",
    ),
    (
        "else of the nearest release",
        {"gpus": [V100], "packages": {"torch": "2.15.0"}, "cuda_build": "13.2"},
        "torch 2.14.1+cu126",
    ),
    (
        "that the driver runs, if there is one",
        {
            "gpus": [gpu("NVIDIA B300", "10.3")],
            "driver": "575.57.08",
            "cuda_driver": "12.9",
            "packages": {"torch": "2.13.0+cu126"},
            "cuda_build": "12.6",
        },
        "torch 2.13.0+cu129",
    ),
    (
        "for all GPUs",
        {
            "gpus": [P100, gpu("NVIDIA A10", "8.6")],
            "packages": {"torch": "2.11.0+cu128"},
            "cuda_build": "12.8",
        },
        "torch 2.11.0+cu126",
    ),
    (
        "an engine pins its torch: the nearest release of the engine whose default build has the code",
        {
            "gpus": [gpu("NVIDIA GeForce RTX 5090", "12.0")],
            "engine": "vllm",
            "engine_version": "0.8.5",
            "packages": {"torch": "2.6.0"},
            "cuda_build": "12.4",
        },
        "vllm 0.10.2 with torch 2.8.0+cu128",
    ),
    (
        "Jetson before CUDA 13.2 has wheels of its own",
        {
            "gpus": [gpu("Orin (nvgpu)", "8.7")],
            "driver": "540.4.0",
            "cuda_driver": "12.6",
            "packages": {"torch": "2.10.0+cu126"},
            "cuda_build": "12.6",
        },
        "a torch that NVIDIA built for Jetson (https://pypi.jetson-ai-lab.io)",
    ),
    (
        "from then on those for Arm servers",
        {
            "gpus": [gpu("Orin (nvgpu)", "8.7")],
            "driver": "595.58.03",
            "cuda_driver": "13.2",
            "packages": {"torch": "2.14.1+cu126"},
            "cuda_build": "12.6",
        },
        "torch 2.14.1+cu132",
    ),
    (
        "Kepler and Blackwell in one host have no build in common",
        {
            "gpus": [gpu("Tesla K80", "3.7"), gpu("NVIDIA B200", "10.0")],
            "packages": {"torch": "2.11.0"},
            "cuda_build": "13.0",
        },
        "torch compiled for 3.7, 10.0",
    ),
]


@pytest.mark.parametrize(("why", "facts", "instead"), INSTEAD, ids=[row[0] for row in INSTEAD])
def test_the_fix_names_what_has_the_code(why: str, facts: dict[str, Any], instead: str) -> None:
    known = {**CURRENT, "engine": "transformers", "engine_version": "5.17.0", **facts}
    found = describe(Survey(facts=Facts.model_validate(known)), load_tables())
    assert found.gpus is not None
    assert next(one["gpu.torch_instead"] for one in found.gpus if "gpu.torch_instead" in one) == instead, why


@functools.cache
def _packages() -> list[dict[str, Any]]:
    return [case.facts for case in CASES if case.facts.get("packages") not in (None, GONE)]


def test_no_package_makes_an_unknown_gpu_known() -> None:
    for facts in _packages():
        known = {key: value for key, value in {**CURRENT, **facts}.items() if value is not GONE}
        found = describe(
            Survey(facts=Facts.model_validate({**known, "gpus": [{"name": "a GPU"}]})), load_tables()
        )
        assert found.gpus is not None
        assert {found.gpus[0][name] for name in ("gpu.jit", "gpu.torch_kernels", "gpu.triton")} == {None}
