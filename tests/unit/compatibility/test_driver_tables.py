"""Each row of the tables about drivers says what its source says; advice stays within them."""

from __future__ import annotations

from typing import Any

import pytest
from compatibility_cases import CURRENT, R550, TRANSFORMERS

from tasks.compatibility.devices import fabric
from tasks.compatibility.drivers import tegra_row
from tasks.compatibility.models import Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import Tables, load_tables
from tasks.compatibility.subject import native_cuda
from tasks.compatibility.way_out import advise
from tasks.core.facts import Facts

FULL = load_tables()

COMPAT = {
    "11.8": ("515.105.01", "460.106.00"),
    "12.1": ("525.147.05", "460.106.00"),
    "12.2": ("525.147.05", "530.30.02"),
    "12.3": ("535.183.06", "530.30.02"),
    "12.4": ("470.256.02", "545.23.08"),
    "12.5": ("550.127.05", "545.23.08"),
    "12.6": ("550.127.05", "555.42.06"),
    "12.8": ("565.57.01", "555.42.06"),
    "12.9": ("570.172.08", "555.42.06"),
    "13.0": ("535.288.01", "560.35.05"),
    "13.1": ("580.126.09", "565.57.01"),
    "13.2": ("590.48.01", "575.57.08"),
}
"""A driver of a branch on which NVIDIA lets cuda-compat run, and one of another, by the CUDA of the package."""

TEGRA = {
    "32.1": ("32.3.1", "4.2", "10.0"),
    "32.4": ("32.7.6", "4.4 to 4.6", "10.2"),
    "34.1": ("34.1.1", "5.0", "11.4"),
    "35.1": ("35.6.4", "5.0.2 to 5.1", "11.4"),
    "36.2": ("36.2.0", "6.0 (developer preview)", "12.2"),
    "36.3": ("36.3.0", "6.0", "12.2"),
    "36.4": ("36.4.4", "6.1 to 6.2", "12.6"),
    "38.2": ("38.4.0", "7.0 and 7.1", "13.0"),
    "39.2": ("39.2.0", "7.2", "13.2"),
    "540.2": ("540.2.0", "6.0 (developer preview)", "12.2"),
    "540.3": ("540.3.0", "6.0", "12.2"),
    "540.4": ("540.4.0", "6.1 to 6.2", "12.6"),
    "540.5": ("540.5.0", "6.2.2", "12.6"),
    "580": ("580.00", "7.0 and 7.1", "13.0"),
    "595": ("595.78", "7.2", "13.2"),
}
"""A driver of the row, its JetPack, and the CUDA that nvidia-smi or NVIDIA's release notes name."""

DRIVERS = {
    "418.87.01": "10.1",
    "440.33.01": "10.2",
    "470.82.01": "11.4",
    "535.154.05": "12.2",
    "565.57.01": "12.7",
    "580.95.05": "13.0",
    "615.71.09": "13.4",
}
"""What nvidia-smi prints, also of branches that come with no toolkit."""

LAST = {
    "2.0": 390,
    "2.1": 390,
    "3.0": 470,
    "3.5": 470,
    "3.7": 470,
    "5.0": 580,
    "5.2": 580,
    "6.0": 580,
    "6.1": 580,
    "7.0": 580,
}

FAULTS = {
    "Driver/library version mismatch": "reload the kernel modules",
    "No devices were found": "RmInitAdapter",
    "the kernel module lists 1 GPU, and NVML finds none": "RmInitAdapter",
    "couldn't communicate with the NVIDIA driver": "modprobe nvidia",
    "Driver Not Loaded": "modprobe nvidia",
    "Failed to initialize NVML: Unknown Error": "NVRM and Xid",
    "NVML: GPU 0: GPU is lost": "Xid 79",
    "something else": "after a driver upgrade",
}

BOARDS = [
    "NVIDIA A100-SXM4-40GB",
    "NVIDIA A800-SXM4-80GB",
    "NVIDIA B200",
    "NVIDIA B300 SXM6 AC",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H20",
    "NVIDIA H200",
    "NVIDIA H800",
    "Tesla V100-SXM3-32GB",
]


def facts(**changes: Any) -> Facts:
    return Facts.model_validate({**CURRENT, **changes})


def rules(known: Facts, tables: Tables = FULL, fault: str | None = None) -> dict[str, str]:
    found = judge(Survey(facts=known, fault=fault), tables=tables).findings
    return {finding.rule: f"{finding.message} {finding.fix}" for finding in found}


def loaded(cuda: str, driver: str) -> Facts:
    gpus = [{"name": "NVIDIA A100-SXM4-80GB", "compute_capability": "8.0"}]
    return facts(
        **{
            **TRANSFORMERS,
            "driver": driver,
            "cuda_driver": cuda,
            "gpus": gpus,
            "cuda_build": cuda,
            "forward_compat": True,
        }
    )


@pytest.mark.parametrize(("driver", "cuda"), DRIVERS.items())
def test_a_driver_supports_the_cuda_of_its_branch(driver: str, cuda: str) -> None:
    assert native_cuda(facts(driver=driver, cuda_driver=None), FULL) == cuda


def test_each_cuda_compat_has_its_drivers() -> None:
    assert list(COMPAT) == [row.cuda for row in FULL.compat]


@pytest.mark.parametrize("cuda", COMPAT)
def test_cuda_compat_on_listed_and_other_drivers(cuda: str) -> None:
    good, bad = COMPAT[cuda]
    assert "FWD-YES" in rules(loaded(cuda, good))
    assert "FWD-BRANCH" not in rules(loaded(cuda, good))
    assert "FWD-BRANCH" in rules(loaded(cuda, bad))


@pytest.mark.parametrize("row", range(len(FULL.tegra)), ids=lambda row: FULL.tegra[row].driver)
def test_tegra_drivers_are_of_their_jetpack(row: int) -> None:
    driver, jetpack, cuda = TEGRA[FULL.tegra[row].driver]
    gpus = [{"name": "Tegra", "compute_capability": FULL.tegra[row].capabilities[0]}]
    found = tegra_row(driver, FULL)
    assert found is not None
    assert found.jetpack == jetpack
    assert native_cuda(facts(driver=driver, cuda_driver=None, gpus=gpus), FULL) == cuda


@pytest.mark.parametrize("capability", LAST)
def test_the_last_branch_of_each_gpu(capability: str) -> None:
    gpus = [{"name": "some GPU", "compute_capability": capability}]
    last = LAST[capability]
    build = {"engine": "llama.cpp", "packages": {}, "gpus": gpus, "cuda_build": "8.0", "cuda_driver": None}
    assert "DRV-ARCH-LAST" not in rules(facts(driver=f"{last}.1", **build))
    beyond = rules(facts(driver=f"{last + 5}.1", **build))
    assert f"use a driver of the R{last} branch" in beyond["DRV-ARCH-LAST"]


def test_every_bounded_capability_is_tried() -> None:
    assert {row.cc: row.last_branch for row in FULL.capabilities if row.last_branch} == LAST


@pytest.mark.parametrize(("fault", "advice"), FAULTS.items())
def test_each_fault_has_its_way_out(fault: str, advice: str) -> None:
    assert advice in rules(facts(), fault=fault)["HOST-FAULT"]


@pytest.mark.parametrize(
    ("container", "said"),
    [(None, "dmesg for NVRM and Xid"), ("docker", "a container loses its GPUs when systemd reloads")],
)
def test_a_container_has_another_way_out(container: str | None, said: str) -> None:
    known = facts(container=container)
    assert said in rules(known, fault="Failed to initialize NVML: Unknown Error")["HOST-FAULT"]


def about_board(name: str, tables: Tables) -> str | None:
    return fabric(facts(gpus=[{"name": name, "compute_capability": "9.0"}] * 8), tables)


@pytest.mark.parametrize("name", BOARDS)
def test_eight_such_gpus_are_on_a_board_with_nvswitch(name: str) -> None:
    assert about_board(name, FULL) == "not known"


V100 = {"name": "Tesla V100-SXM2-32GB", "compute_capability": "7.0"}
K80 = {"name": "Tesla K80", "compute_capability": "3.7"}
XAVIER = {"name": "Xavier", "compute_capability": "7.2"}
ORIN = {"name": "Orin (nvgpu)", "compute_capability": "8.7"}


@pytest.mark.parametrize(
    ("known", "rule", "advice"),
    [
        ({**R550}, "DRV-FLOOR-13", "upgrade the driver to 580 or newer, or"),
        ({**R550, "gpus": [V100]}, "DRV-FLOOR-13", "upgrade the driver to 580 or newer, R580 at most, or"),
        (
            {"driver": "470.1", "gpus": [K80]},
            "DRV-FLOOR-13",
            "driver 580 does not drive Tesla K80 (R470 is the last",
        ),
        ({"driver": "510.1", "cuda_build": "12.4"}, "DRV-FLOOR-12", "built for CUDA 11.8 or older"),
        ({"driver": "440.1", "cuda_build": "11.8"}, "DRV-FLOOR-11", "built for CUDA 10.2 or older"),
        ({"driver": "525.60.13"}, "DRV-FLOOR-13", "built for CUDA 12.9 or older"),
        ({"driver": "525.53"}, "DRV-FLOOR-13", "built for CUDA 12.0 or older"),
        (
            {**R550, "kernel": "6.6.87.2-microsoft-standard-WSL2"},
            "DRV-FLOOR-13",
            "upgrade the NVIDIA driver of Windows to 580 or newer",
        ),
        (
            {**R550, "gpus": [{"name": "GRID T4-16Q", "compute_capability": "7.5"}]},
            "DRV-FLOOR-13",
            "have the hypervisor's vGPU manager and the guest driver upgraded to 580 or newer",
        ),
        (
            {"driver": "35.3.1", "gpus": [XAVIER]},
            "TEGRA-MAJOR",
            "no JetPack for this board supports CUDA 13.0",
        ),
        ({"driver": "540.4.0", "gpus": [ORIN]}, "TEGRA-MAJOR", "upgrade to JetPack 7.2 (CUDA 13.2)"),
    ],
)
def test_advice_on_drivers_is_bounded(known: dict[str, Any], rule: str, advice: str) -> None:
    assert advice in rules(facts(**{"cuda_driver": None, **known}))[rule]


@pytest.mark.parametrize(
    ("known", "ways"),
    [
        (
            {"driver": "35.3.1", "gpus": [ORIN], "engine": "llama.cpp", "packages": {}, "cuda_build": "12.6"},
            ["JetPack 5.0.2 to 5.1 -> 6.0"],
        ),
        (
            {"cuda_driver": "12.8", "forward_compat": True},
            ["cuda-compat 12.8 -> off the library path"],
        ),
        (
            {**R550, "gpus": [V100], "cuda_build": "12.6", **TRANSFORMERS, "driver": "590.48.01"},
            ["driver 590.48.01 -> of the R580 branch"],
        ),
    ],
)
def test_ways_out_know_the_platform(known: dict[str, Any], ways: list[str]) -> None:
    told = [way.text for way in advise(Survey(facts=facts(**known))).ways_out]
    assert [way for way in ways if way not in told] == [], told
    assert "driver" not in " ".join(told) or "gpus" not in known or known["gpus"] != [ORIN]
