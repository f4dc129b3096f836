"""What people paste of a host: every form of nvidia-smi, nvcc, collect_env, with prompts, quotes and noise around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.host.host_reports import parse_host_report
from tasks.core.facts import Gpu

MIB = 2**20
BANNER = """\
user@host:~$ nvidia-smi
Mon Sep  1 12:00:00 2025
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.142                Driver Version: 550.142        CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |
| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |
|=========================================+========================+======================|
|   0  NVIDIA GeForce RTX 3090        Off |   00000000:01:00.0 Off |                  N/A |
| 30%   40C    P8             20W /  350W |       1MiB /  24576MiB |      0%      Default |
|                                         |                        |                  N/A |
+-----------------------------------------+------------------------+----------------------+
|   1  NVIDIA GeForce ...             On  |   00000000:02:00.0 Off |                  N/A |
| 30%   40C    P8             20W /  350W |       1MiB /  11264MiB |      0%      Default |
+-----------------------------------------+------------------------+----------------------+
"""
LISTING = "$ nvidia-smi -L\nGPU 0: NVIDIA GeForce RTX 3090 (UUID: GPU-aa)\nGPU 1: NVIDIA GeForce GTX 1080 Ti (UUID: GPU-bb)\n"
LOG = """\
==============NVSMI LOG==============

Timestamp                                 : Wed Aug 14 23:19:54 2024
Driver Version                            : 535.161.08
CUDA Version                              : 12.2

Attached GPUs                             : 2
GPU 00000000:01:00.0
    Product Name                          : GRID P40-24Q
    Product Brand                         : NVIDIA RTX Virtual Workstation
    GPU UUID                              : GPU-a126170b
    FB Memory Usage
        Total                             : 24576 MiB
        Used                              : 0 MiB
    BAR1 Memory Usage
        Total                             : 256 MiB
GPU 00000000:02:00.0
    Product Name                          : GRID P40-24Q
"""
QUERY = """\
$ nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv
name, driver_version, memory.total [MiB], compute_cap
NVIDIA H100 80GB HBM3, 570.124.06, 81559 MiB, 9.0
NVIDIA H100 80GB HBM3, 570.124.06, 81559 MiB, 9.0
"""
COLLECTED = """\
### Your current environment
> Collecting environment information...
> PyTorch version: 2.4.0+cu121
> CUDA used to build PyTorch: 12.1
> OS: Ubuntu 22.04.4 LTS (x86_64)
> Libc version: glibc-2.35
> CUDA runtime version: 12.4.131
> GPU models and configuration: GPU 0: NVIDIA A100-SXM4-80GB
> GPU 1: NVIDIA A100-SXM4-80GB
>
> Nvidia driver version: 550.90.07
> cuDNN version: Probably one of the following:
"""
NVCC = "Cuda compilation tools, release 12.4, V12.4.131\n"
LDD = "$ ldd --version\nldd (Ubuntu GLIBC 2.35-0ubuntu3.8) 2.35\n"
RELEASE = 'NAME="Rocky Linux"\nPRETTY_NAME="Rocky Linux 8.10 (Green Obsidian)"\n'


def read(text: str) -> dict[str, Any]:
    survey = parse_host_report(text)
    found = survey.facts.model_dump()
    return found | ({"fault": survey.fault} if survey.fault else {})


def gpu(name: str, mib: int | None = None, **more: Any) -> dict[str, Any]:
    return Gpu(name=name, memory_bytes=mib and mib * MIB, **more).model_dump()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            BANNER,
            {
                "driver": "550.142",
                "cuda_driver": "12.4",
                "gpus": (gpu("NVIDIA GeForce RTX 3090", 24576), gpu("NVIDIA GeForce", 11264)),
            },
        ),
        (
            BANNER + LISTING,
            {
                "driver": "550.142",
                "cuda_driver": "12.4",
                "gpus": (
                    gpu("NVIDIA GeForce RTX 3090", 24576, uuid="GPU-aa"),
                    gpu("NVIDIA GeForce GTX 1080 Ti", 11264, uuid="GPU-bb"),
                ),
            },
        ),
        (
            LISTING,
            {
                "gpus": (
                    gpu("NVIDIA GeForce RTX 3090", uuid="GPU-aa"),
                    gpu("NVIDIA GeForce GTX 1080 Ti", uuid="GPU-bb"),
                )
            },
        ),
        (
            LOG,
            {
                "driver": "535.161.08",
                "cuda_driver": "12.2",
                "gpus": (gpu("GRID P40-24Q", 24576, uuid="GPU-a126170b"), gpu("GRID P40-24Q")),
            },
        ),
        (
            QUERY,
            {
                "driver": "570.124.06",
                "gpus": (gpu("NVIDIA H100 80GB HBM3", 81559, compute_capability="9.0"),) * 2,
            },
        ),
        (
            COLLECTED,
            {
                "driver": "550.90.07",
                "nvcc": "12.4.131",
                "cuda_build": "12.1",
                "glibc": "2.35",
                "distribution": "ubuntu 22.04.4 lts",
                "gpus": (gpu("NVIDIA A100-SXM4-80GB"),) * 2,
            },
        ),
        (NVCC + LDD, {"nvcc": "12.4", "glibc": "2.35"}),
        (RELEASE, {"distribution": "rocky linux 8.10 (green obsidian)"}),
        ("No devices were found\n", {"gpus": ()}),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n\n",
            {
                "fault": "nvidia-smi: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
            },
        ),
        (
            "$ nvidia-smi\nFailed to initialize NVML: Driver/library version mismatch\nNVML library version: 570.124\n",
            {"fault": "nvidia-smi: Failed to initialize NVML: Driver/library version mismatch"},
        ),
        ("bash: nvidia-smi: command not found", {}),
        ("\x1b[1mDriver Version: 550.1\x1b[0m \r\n", {"driver": "550.1"}),
        ("GPU 0: \nname, x\n", {}),
    ],
)
def test_what_the_text_states(text: str, wanted: dict[str, Any]) -> None:
    assert read(text) == wanted


REPORTS = Path(__file__).parents[2] / "compatibility" / "reports" / "tool-outputs.json"
OUTPUTS = [case for case in json.loads(REPORTS.read_text()) if case["tool"] == "smi"]


@pytest.mark.parametrize("case", OUTPUTS, ids=lambda case: case["name"])
def test_public_outputs_of_nvidia_smi(case: dict[str, Any]) -> None:
    """As one paste; what nvidia-smi cannot say is not known."""
    survey, want = parse_host_report(case["text"]), case["want"]
    known = survey.facts
    assert (known.driver, known.cuda_driver) == (want["driver"], want["cuda"])
    assert (len(known.gpus) if known.known("gpus") else None) == want["gpus"]
    if want["fault"] is None or case["code"] == 14:
        assert survey.fault is None
    else:
        assert want["fault"] in (survey.fault or "")


@pytest.mark.parametrize(
    "text",
    ["GPU 0: " + " " * 2_000_000 + "x", "\n" * 2_000_000, "> " * 1_000_000, "|   0  " + "a " * 1_000_000],
)
def test_long_blanks_are_read_at_once(text: str) -> None:
    assert parse_host_report(text).facts.driver is None


@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from([*(BANNER + LOG + QUERY + COLLECTED).splitlines(), "GPU 0: x"])).map("\n".join)
)
def test_any_text_is_read(text: str) -> None:
    parse_host_report(text)
