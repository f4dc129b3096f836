"""Whatever NVIDIA's tools print, and whatever of it is cut or overwritten: a value or nothing, never an exception."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.docker.container_toolkit import parse_toolkit_version
from blocks.host.cuda_library import parse_cuda_library
from blocks.host.nvidia_tools import parse_gpu_information, parse_kernel_module, parse_nvcc, parse_nvidia_smi
from blocks.processes.process import Finished
from tasks.compatibility.models import KernelReading, SmiReading, ToolkitReading
from tasks.core.facts import Facts

BANNER = """\
Wed Nov 25 10:12:01 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 570.124.06             Driver Version: 570.124.06     CUDA Version: 12.8     |
|-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
|=========================================+========================+======================|
|   0  NVIDIA H200                    On  |   00000000:18:00.0 Off |                    0 |
| N/A   31C    P0             76W /  700W |       1MiB / 143771MiB |      0%      Default |
+-----------------------------------------+------------------------+----------------------+
"""
NEW_BANNER = "| NVIDIA-SMI 610.57.04    KMD Version: 610.57.04    CUDA UMD Version: 13.3             |\n"
LISTING = "GPU 0: NVIDIA H200 (UUID: GPU-8f6a)\n  MIG 1g.18gb Device 0: (UUID: MIG-bb)\nGPU 1: NVIDIA H200 (UUID: GPU-cc)\n"
NVCC = (
    "nvcc: NVIDIA (R) Cuda compiler driver\nCopyright (c) 2005-2025 NVIDIA Corporation\n"
    "Built on Fri_Feb_21_20:23:50_PST_2025\nCuda compilation tools, release 12.8, V12.8.93\n"
    "Build cuda_12.8.r12.8/compiler.35583870_0\n"
)
MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)
INFORMATION = (
    "Model: \t\t NVIDIA H200\nIRQ:   \t\t 145\nGPU UUID: \t GPU-8f6a\nBus Location: \t 0000:18:00.0\n"
)
TOOLKIT = "NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d0db00d9b1d73c0128c8962c55f4d\n"
TOOLKIT_CLI = "cli-version: 1.17.8\nlib-version: 1.17.8\nbuild date: 2025-05-30T13:47+0000\n"
LIBRARY = '{"path": "/usr/local/cuda-13.0/compat/libcuda.so.580.65.06", "cuda": 13000}'

ODD = st.one_of(
    st.text(max_size=20),
    st.text(alphabet="0123456789.", max_size=80),
    st.sampled_from(["\x00", "\r", "\x1b[31m", "N/A", "ERR!", "-1", "9" * 5000, "\ud800", "1e999", "٣.٤"]),
)


NUMBERS = re.compile(r"[0-9]+")
LONG = st.integers(1, 5000).map(lambda length: "7" * length)


@st.composite
def mutated(draw: st.DrawFn, original: str) -> str:
    """The original with a few pieces cut out, doubled or overwritten, or with other numbers."""
    text = original
    for _ in range(draw(st.integers(1, 4))):
        if (found := [match.span() for match in NUMBERS.finditer(text)]) and draw(st.booleans()):
            start, end = draw(st.sampled_from(found))
            piece = draw(st.one_of(LONG, ODD))
        else:
            start = draw(st.integers(0, len(text)))
            end = draw(st.integers(start, min(len(text), start + 40)))
            piece = draw(st.one_of(st.just(""), st.just(text[start:end] * 2), ODD))
        text = text[:start] + piece + text[end:]
    return text


def outputs(*originals: str) -> st.SearchStrategy[str]:
    """Arbitrary text, and what real tools printed, damaged."""
    return st.one_of(st.text(), ODD, *(mutated(original) for original in originals))


def done(stdout: str, code: int, stderr: str = "") -> Finished:
    return Finished(("nvidia-smi",), code, stdout, stderr, 0.1)


def test_the_originals_are_read() -> None:
    assert parse_nvidia_smi(done(BANNER, 0), done(LISTING, 0)) == SmiReading(
        driver="570.124.06", cuda_driver="12.8", gpus=2
    )
    assert (parse_nvcc(NVCC), parse_kernel_module(MODULE)) == ("12.8", "580.95.05")
    assert (parse_toolkit_version(TOOLKIT), parse_toolkit_version(TOOLKIT_CLI)) == ("1.17.8", "1.17.8")
    assert parse_gpu_information(INFORMATION) is not None
    assert parse_cuda_library(LIBRARY) is not None


@given(outputs(BANNER, NEW_BANNER), outputs(LISTING), st.integers(-15, 255), st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_nvidia_smi(banner: str, listing: str, code: int, stderr: str) -> None:
    reading = parse_nvidia_smi(done(banner, code, stderr), done(listing, code))
    assert (reading.fault or reading.warning) is not None or code == 0
    assert reading.warning is None or (code == 14 and "infoROM" in reading.warning)
    Facts(driver=reading.driver, cuda_driver=reading.cuda_driver)


@pytest.mark.parametrize(
    ("parse", "original"),
    [
        (parse_nvcc, NVCC),
        (parse_kernel_module, MODULE),
        (parse_toolkit_version, TOOLKIT),
        (parse_toolkit_version, TOOLKIT_CLI),
    ],
)
def test_versions(parse: Callable[[str], str | None], original: str) -> None:
    @given(outputs(original))
    @settings(max_examples=100, deadline=None)
    def any_output(text: str) -> None:
        version = parse(text)
        Facts(nvcc=version)
        KernelReading(driver=version)
        ToolkitReading(version=version)

    any_output()


@given(outputs(INFORMATION))
@settings(max_examples=100, deadline=None)
def test_the_kernel_modules_list_of_gpus(text: str) -> None:
    parse_gpu_information(text)


@given(outputs(LIBRARY))
@settings(max_examples=100, deadline=None)
def test_the_dynamic_loaders_answer(text: str) -> None:
    parse_cuda_library(text)
