"""nvidia-smi under its old and new labels, nvcc by CUDA_HOME and PATH, the kernel module's files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.host import nvidia_tools
from blocks.host.host import ThisHost, container_of, fingerprint_here, read_system
from blocks.host.nvidia_tools import (
    parse_gpu_information,
    parse_kernel_module,
    parse_nvcc,
    parse_nvidia_smi,
    read_kernel_module,
    read_nvcc,
    read_nvidia_smi,
)
from blocks.processes.process import Finished
from tasks.compatibility.apply import survey_host
from tasks.compatibility.models import KernelReading, SmiReading

OLD = "| NVIDIA-SMI 535.154.05             Driver Version: 535.154.05   CUDA Version: 12.2     |"
NEW = "| NVIDIA-SMI 610.57.04    KMD Version: 610.57.04    CUDA UMD Version: 13.3             |"
NO_CUDA = "| NVIDIA-SMI 470.82.01    Driver Version: 470.82.01    CUDA Version: N/A      |"
ERROR = "| NVIDIA-SMI 570.124.06   Driver Version: 570.124.06   CUDA Version: ERR!     |"
LISTING = (
    "GPU 0: NVIDIA H200 (UUID: GPU-aa)\n"
    "  MIG 1g.18gb Device 0: (UUID: MIG-bb)\n"
    "GPU 1: NVIDIA H200 (UUID: GPU-cc)\n"
)
NVCC = (
    "nvcc: NVIDIA (R) Cuda compiler driver\n"
    "Cuda compilation tools, release {0}, V{0}.88\n"
    "Build cuda_{0}.r{0}/compiler.3_0\n"
)


def done(stdout: str, code: int = 0) -> Finished:
    return Finished(("nvidia-smi",), code, stdout, "", 0.1)


@pytest.mark.parametrize(
    ("banner", "driver", "cuda"),
    [
        (OLD, "535.154.05", "12.2"),
        (NEW, "610.57.04", "13.3"),
        (NO_CUDA, "470.82.01", None),
        (ERROR, "570.124.06", None),
        ("", None, None),
    ],
)
def test_banner(banner: str, driver: str | None, cuda: str | None) -> None:
    assert parse_nvidia_smi(done(banner), done(LISTING)) == SmiReading(
        driver=driver, cuda_driver=cuda, gpus=2
    )


def test_a_failure_is_kept_in_its_own_words() -> None:
    words = "Failed to initialize NVML: Driver/library version mismatch"
    assert parse_nvidia_smi(done(words, 18), done(words, 18)) == SmiReading(fault=f"nvidia-smi: {words}")
    assert parse_nvidia_smi(done("", 9), done("", 9)).fault == "nvidia-smi: exited with 9 and printed nothing"


REPORTS = Path(__file__).parents[2] / "compatibility/reports/tool-outputs.json"


def outputs(tool: str) -> list[Any]:
    """Outputs that people posted in public reports."""
    cases = json.loads(REPORTS.read_text())
    return [pytest.param(case, id=case["name"]) for case in cases if case["tool"] == tool]


@pytest.mark.parametrize("case", outputs("smi"))
def test_nvidia_smi_of_public_reports(case: dict[str, Any]) -> None:
    banner, _, rest = case["text"].partition("--- nvidia-smi -L, exit code ")
    code, _, listing = rest.partition("\n")
    reading = parse_nvidia_smi(done(banner, case["code"]), done(listing, int(code)))
    want = case["want"]
    assert (reading.driver, reading.cuda_driver, reading.gpus) == (want["driver"], want["cuda"], want["gpus"])
    said = reading.warning if case["code"] == 14 else reading.fault
    assert (reading.warning is not None, reading.fault is not None) == (
        case["code"] == 14,
        case["code"] not in (0, 14),
    )
    assert (want["fault"] or "") in (said or "")


@pytest.mark.parametrize("case", outputs("nvcc"))
def test_nvcc_of_public_reports(case: dict[str, Any]) -> None:
    assert parse_nvcc(case["text"]) == case["want"]


@pytest.mark.parametrize("case", outputs("proc"))
def test_the_kernel_module_of_public_reports(case: dict[str, Any]) -> None:
    assert parse_kernel_module(case["text"]) == case["want"]


@pytest.mark.parametrize("case", outputs("gpuinfo"))
def test_a_gpu_of_the_kernel_module_without_a_name(case: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "gpus/0000:00:08.0").mkdir(parents=True)
    (tmp_path / "gpus/0000:00:08.0/information").write_text(case["text"])
    assert read_kernel_module(tmp_path, tmp_path / "nowhere") == KernelReading(listed=1)


def test_the_table_before_a_warning_is_no_complaint() -> None:
    table = "Mon Sep  1 12:00:00 2025       \n+---+\n| NVIDIA-SMI |\n+---+\n"
    assert parse_nvidia_smi(
        done(table + "Unable to determine the device handle", 255), done("", 255)
    ).fault == ("nvidia-smi: Unable to determine the device handle")
    assert parse_nvidia_smi(done(table, 14), done("", 0)).warning is None
    assert (
        parse_nvidia_smi(done(table, 9), done("", 9)).fault == "nvidia-smi: exited with 9 and printed nothing"
    )


def test_a_uuid_of_question_marks_is_none() -> None:
    gpu = parse_gpu_information("Model: NVIDIA H200\nGPU UUID: GPU-????????-????\n")
    assert gpu is not None
    assert (gpu.name, gpu.uuid) == ("NVIDIA H200", None)


@given(st.text(), st.text(), st.integers(0, 2))
def test_any_output_is_read(banner: str, listing: str, code: int) -> None:
    parse_nvidia_smi(done(banner, code), done(listing, code))
    parse_nvcc(banner)


@given(
    st.lists(st.integers(0, 9999), min_size=2, max_size=6), st.sampled_from(["Driver Version", "KMD Version"])
)
def test_any_numbers_are_read_as_a_version_or_not_at_all(parts: list[int], label: str) -> None:
    text = ".".join(map(str, parts))
    reading = parse_nvidia_smi(done(f"| {label}: {text} |"), done(""))
    assert reading.driver == (text if len(parts) <= 4 else None)


def program(folder: Path, name: str, script: str) -> Path:
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_nvidia_smi_is_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", f'[ "$1" = -L ] && printf "{LISTING}" || echo "{NEW}"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert read_nvidia_smi() == SmiReading(driver="610.57.04", cuda_driver="13.3", gpus=2)


def test_nvidia_smi_that_hangs_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(nvidia_tools, "_TIMEOUT_S", 0.1)
    assert read_nvidia_smi() == SmiReading(fault="nvidia-smi did not end within 0.1 s")


def test_nvidia_smi_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nvidia_tools, "_SMI_FOLDERS", ())
    assert read_nvidia_smi() is None


def test_nvcc_of_cuda_home_comes_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("12.4", "13.0"):
        program(tmp_path / version / "bin", "nvcc", f'printf "{NVCC.format(version)}"')
    monkeypatch.setenv("PATH", f"{tmp_path / '13.0' / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "12.4"))
    assert read_nvcc() == "12.4"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert read_nvcc() == "13.0"
    monkeypatch.delenv("CUDA_HOME")
    assert read_nvcc() == "13.0"


def test_nvcc_that_says_nothing_or_hangs_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "nvcc", "exec sleep 60")
    program(tmp_path / "path", "nvcc", "echo hello")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
    monkeypatch.setattr(nvidia_tools, "_TIMEOUT_S", 0.1)
    assert read_nvcc() is None


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed on this machine")
def test_the_nvcc_of_this_machine_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert read_nvcc() is not None


def test_kernel_module(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert read_kernel_module(tmp_path, nowhere) == KernelReading()
    (tmp_path / "module").write_text("580.95.05\n")
    assert read_kernel_module(nowhere, tmp_path / "module") == KernelReading(driver="580.95.05")
    (tmp_path / "module").write_text("a module of somebody's own\n")
    assert read_kernel_module(nowhere, tmp_path / "module") == KernelReading()
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.154.05  Thu Dec 28 15:37:48 UTC 2023\nGCC version:\n"
    )
    gpus = tmp_path / "gpus"
    for address, text in (
        ("0000:01:00.0", "Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-aa\n"),
        ("0000:02:00.0", "IRQ: 1\n"),
    ):
        (gpus / address).mkdir(parents=True)
        (gpus / address / "information").write_text(text)
    (gpus / "0000:03:00.0" / "information").mkdir(parents=True)
    reading = read_kernel_module(tmp_path)
    assert (reading.driver, [gpu.name for gpu in reading.gpus]) == ("535.154.05", ["NVIDIA H200"])
    open_module = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
    (tmp_path / "version").write_text(open_module)
    assert read_kernel_module(tmp_path).driver == "580.95.05"


MOUNTED = "44 40 254:0 /hosts /etc/hosts rw - ext4 /dev/vda rw\n"


@pytest.mark.parametrize(
    ("files", "environment", "kind"),
    [
        ({}, {}, None),
        ({".dockerenv": ""}, {}, "docker"),
        ({".dockerenv": "", "proc/self/mountinfo": MOUNTED}, {}, "docker"),
        ({".dockerenv": "", "proc/self/mountinfo": "36 1 254:0 / / rw - ext4 /dev/vda rw\n"}, {}, None),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({"proc/1/cgroup": "0::/kubepods/burstable/pod1/3f\n"}, {}, "kubernetes"),
        ({"proc/1/cgroup": "0::/init.scope\n"}, {}, None),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"container": "lxc"}, "lxc"),
        ({}, {"container": os.fsdecode(b"\xff")}, "?"),
    ],
)
def test_containers_by_their_marks(
    files: dict[str, str], environment: dict[str, str], kind: str | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert container_of(environment, tmp_path) == kind


MASK = """
set -e
mount -t tmpfs none /sys
: > "$1"
for file in cpuinfo meminfo filesystems; do mount --bind "$1" /proc/$file; done
"""


def masked(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a mount namespace in which /sys is empty, and so are files of /proc."""
    script = f'{MASK}\nshift\nexec "$@"\n'
    arguments = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        str(tmp_path / "empty"),
        *command,
    ]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@pytest.mark.mount
def test_a_container_that_masks_proc_and_sys_is_surveyed(tmp_path: Path) -> None:
    done = masked(tmp_path, str(Path(sys.executable).with_name("slipway")), "survey", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["memory_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert {disk["rotational"] for disk in facts["disks"]} <= {None}


def test_this_host() -> None:
    survey = survey_host(ThisHost())
    assert survey.facts.cpu_count == os.cpu_count()
    assert survey.facts.known("driver")
    assert read_system().glibc
    assert fingerprint_here() == survey.facts.fingerprint == fingerprint_here()
