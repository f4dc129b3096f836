"""Cases of the truth table about drivers: cuda-compat, Tegra, last branches, faults, MIG, vGPU and the fabric manager."""

from __future__ import annotations

from typing import Any

from compatibility_cases import (
    A100,
    CPU,
    GONE,
    H200,
    L4,
    LLAMA_CUDA,
    R550,
    RTX4090,
    TRANSFORMERS,
    V100,
    Case,
    gpu,
)

COMPAT_130 = {**R550, "cuda_driver": "13.0", "forward_compat": True}
SAFE_535 = {"driver": "535.183.06", "cuda_driver": "12.2"}
K80 = gpu("Tesla K80", "3.7")
ORIN, XAVIER, THOR = gpu("Orin (nvgpu)", "8.7"), gpu("Xavier", "7.2"), gpu("NVIDIA Thor", "11.0")
KEPLER = {"gpus": [K80], **LLAMA_CUDA, "cuda_build": "11.4"}
JETPACK_5 = {"driver": "35.3.1", "cuda_driver": "11.4", "gpus": [ORIN], **LLAMA_CUDA}
JETPACK_6 = {"driver": "540.4.0", "cuda_driver": "12.6", "gpus": [ORIN], **LLAMA_CUDA}
OLLAMA = {"engine": "ollama", "engine_version": "0.24.0", "packages": {}, "cuda_build": None}
MINOR_12 = {"ART-1-ELSE": "info", "DRV-MINOR-12": "warn"}
MISMATCH = "NVML: Driver/library version mismatch"
NOT_LOADED = "nvidia-smi: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver"


def board(name: str, count: int = 8) -> list[dict[str, Any]]:
    return [gpu(name, "9.0")] * count


FABRIC_WARN = {"FABRIC-NOT-KNOWN": "warn"}
HGX = {"gpus": board("NVIDIA H200")}

DRIVER_CASES = [
    # cuda-compat
    Case(
        "compat-older-than-the-driver",
        "cuda-compat 12.8 shadows the newer library of driver 580: error 803",
        {"cuda_driver": "12.8", "forward_compat": True},
        "block",
        {"FWD-OLDER": "block"},
    ),
    Case(
        "compat-as-new-as-the-driver",
        "and so does one of the driver's own CUDA",
        {"forward_compat": True},
        "block",
        {"FWD-OLDER": "block"},
    ),
    Case(
        "compat-older-by-its-file",
        "the name of the library decides: 580.65.06 is older than 580.95.05",
        {"forward_compat": True, "cuda_library": "580.65.06"},
        "block",
        {"FWD-OLDER": "block"},
    ),
    Case(
        "compat-newer-patch",
        "a newer library of the same branch runs, as its own list of drivers says",
        {"forward_compat": True, "cuda_library": "580.126.09"},
        "pass",
    ),
    Case(
        "compat-very-same",
        "the driver's own library is not forward compatibility, in whatever folder",
        {"forward_compat": True, "cuda_library": "580.95.05"},
        "pass",
    ),
    Case(
        "compat-older-unused",
        "an engine on the CPU does not load it",
        {**LLAMA_CUDA, "cuda_build": None, "cuda_driver": "12.8", "forward_compat": True},
        "pass",
        {"HOUSE-GPU-IDLE": "info"},
    ),
    Case(
        "compat-of-a-lower-major",
        "cuda-compat 12.8 does not carry a CUDA 13 build",
        {**SAFE_535, "cuda_driver": "12.8", "forward_compat": True},
        "block",
        {"ART-1-ELSE": "warn", "DRV-FLOOR-13": "block"},
    ),
    Case(
        "compat-of-a-lower-minor",
        "within the major version, minor-version compatibility goes on from cuda-compat",
        {**R550, "cuda_driver": "12.6", "forward_compat": True, **TRANSFORMERS, "cuda_build": "12.8"},
        "warn",
        {"DRV-MINOR-12": "warn"},
    ),
    Case(
        "compat-geforce-not-needed",
        "on GeForce it fails with 804 even if the driver would do alone",
        {**COMPAT_130, "gpus": [RTX4090], **TRANSFORMERS, "cuda_build": "12.4"},
        "block",
        {"FWD-NO": "block"},
    ),
    Case(
        "compat-geforce-beside-data-center",
        "one GeForce among the GPUs is enough, whichever comes first",
        {**COMPAT_130, "gpus": [L4, RTX4090]},
        "block",
        {"FWD-NO": "block", "FWD-YES": "warn"},
    ),
    Case(
        "compat-unlisted-gpu",
        "a GPU that the table does not list is no better than one that is listed with doubts",
        {**COMPAT_130, "gpus": [gpu("NVIDIA X9999", "8.9")]},
        "warn",
        {"FWD-SOME": "warn"},
    ),
    Case(
        "compat-unlisted-branch",
        "NVIDIA lists no R560 for cuda-compat 13.0",
        {"driver": "560.35.05", "cuda_driver": "13.0", "forward_compat": True},
        "warn",
        {"FWD-BRANCH": "warn"},
    ),
    Case(
        "compat-not-in-the-table",
        "of cuda-compat 13.3 the table has no row, which is no reason to block",
        {"driver": "595.71.05", "cuda_driver": "13.3", "forward_compat": True, "cuda_build": "13.3"},
        "warn",
        {"FWD-YES": "warn"},
    ),
    Case(
        "compat-past-the-gpu",
        "cuda-compat 13.1 is of R590, which no longer drives a V100",
        {
            "driver": "570.124.06",
            "cuda_driver": "13.1",
            "forward_compat": True,
            "gpus": [V100],
            **TRANSFORMERS,
            "cuda_build": "12.6",
        },
        "block",
        {"FWD-ARCH-LAST": "block"},
    ),
    Case(
        "compat-for-nvcc",
        "what nvcc 12.8 compiles loads by cuda-compat 12.8",
        {
            **SAFE_535,
            "cuda_driver": "12.8",
            "forward_compat": True,
            "nvcc": "12.8",
            "engine_version": "0.11.2",
            "packages": {"torch": "2.9.0", "transformers": "4.57.0"},
            "cuda_build": "12.8",
        },
        "warn",
        {"ART-1-ELSE": "warn", "FWD-YES": "warn"},
    ),
    # the last driver branch of a GPU
    Case(
        "kepler-r470",
        "R470 drives a K80",
        {**KEPLER, "driver": "470.223.02", "cuda_driver": "11.4"},
        "warn",
        {"ENG-CC-LOW": "warn"},
    ),
    Case(
        "kepler-r495",
        "R495 does not",
        {**KEPLER, "driver": "495.29.05", "cuda_driver": "11.5"},
        "block",
        {"DRV-ARCH-LAST": "block", "ENG-CC-LOW": "warn"},
    ),
    Case(
        "fermi-r418",
        "Fermi ends with R390",
        {
            "gpus": [gpu("Tesla M2090", "2.0")],
            **LLAMA_CUDA,
            "driver": "418.226.00",
            "cuda_driver": "10.1",
            "cuda_build": "8.0",
        },
        "block",
        {"DRV-ARCH-LAST": "block", "ENG-CC-LOW": "warn"},
    ),
    Case(
        "kepler-cuda-12",
        "no CUDA 12 compiles for Kepler",
        {**KEPLER, "driver": "470.223.02", "cuda_driver": "11.4", "cuda_build": "12.1"},
        "block",
        {"ARCH-DROPPED": "block", "DRV-FLOOR-12": "block"},
    ),
    # Tegra
    Case(
        "jetpack-5",
        "L4T 35.3.1 is of CUDA 11.4, and no driver older than 450",
        {**JETPACK_5, "cuda_build": "11.4"},
        "pass",
    ),
    Case("jetpack-5-ollama", "Ollama brings a build for JetPack 5", {**JETPACK_5, **OLLAMA}, "pass"),
    Case(
        "jetpack-5-minor",
        "CUDA 11.8 there wants cuda-compat",
        {**JETPACK_5, "cuda_build": "11.8"},
        "warn",
        {"TEGRA-MINOR": "warn"},
    ),
    Case(
        "jetpack-5-major",
        "CUDA 12 does not run without it",
        {**JETPACK_5, "cuda_build": "12.2"},
        "block",
        {"TEGRA-MAJOR": "block"},
    ),
    Case(
        "jetpack-5-compat",
        "cuda-compat 12.2 carries it",
        {**JETPACK_5, "cuda_driver": "12.2", "forward_compat": True, "cuda_build": "12.2"},
        "warn",
        {"FWD-YES": "warn"},
    ),
    Case(
        "jetpack-5-compat-too-new",
        "but cuda-compat 12.6 is not for JetPack 5",
        {**JETPACK_5, "cuda_driver": "12.6", "forward_compat": True, "cuda_build": "12.6"},
        "block",
        {"FWD-TEGRA": "block"},
    ),
    Case("jetpack-6", "driver 540.4.0 is of CUDA 12.6 natively", {**JETPACK_6, "cuda_build": "12.6"}, "pass"),
    Case(
        "jetpack-6.0",
        "and 540.3.0 of 12.2",
        {**JETPACK_6, "driver": "540.3.0", "cuda_build": "12.6"},
        "warn",
        {"FWD-UMD": "info", "TEGRA-MINOR": "warn"},
    ),
    Case(
        "jetpack-6-cuda-13",
        "CUDA 13 needs JetPack 7",
        {**JETPACK_6, "cuda_build": "13.0"},
        "block",
        {"TEGRA-MAJOR": "block"},
    ),
    Case(
        "jetpack-6-torch",
        "a torch for Jetson may be called as PyTorch's own, which has no kernels for Orin",
        {
            "driver": "540.4.0",
            "cuda_driver": "12.6",
            "gpus": [ORIN],
            **TRANSFORMERS,
            "packages": {"torch": "2.9.0+cu126"},
            "cuda_build": "12.6",
        },
        "pass",
        {"TORCH-JETSON": "info"},
    ),
    Case(
        "jetpack-7-thor",
        "driver 580.00 of JetPack 7 runs CUDA 13",
        {"driver": "580.00", "gpus": [THOR], **LLAMA_CUDA, "cuda_build": "13.0"},
        "pass",
    ),
    Case(
        "jetpack-7.2-orin",
        "JetPack 7.2 runs on Orin again",
        {"driver": "595.78", "cuda_driver": "13.2", "gpus": [ORIN], **LLAMA_CUDA, "cuda_build": "13.2"},
        "pass",
    ),
    Case(
        "jetpack-4",
        "JetPack 4 is of CUDA 10.2",
        {"driver": "32.7.1", "cuda_driver": "10.2", "gpus": [XAVIER], **LLAMA_CUDA, "cuda_build": "10.2"},
        "pass",
    ),
    Case(
        "tegra-not-in-the-table",
        "a driver of Tegra's series that has no row supports what it reports",
        {**JETPACK_6, "driver": "99.1", "cuda_driver": "14.0", "cuda_build": "13.0"},
        "pass",
    ),
    Case(
        "igx-with-a-card",
        "a card in an IGX Orin has an ordinary driver, whatever the kernel is called",
        {
            **R550,
            "gpus": [gpu("NVIDIA RTX A6000", "8.6")],
            "kernel": "5.15.0-1015-tegra",
            **LLAMA_CUDA,
            "cuda_build": "12.4",
        },
        "pass",
    ),
    Case(
        "gb10",
        "GB10 has ordinary drivers",
        {"gpus": [gpu("NVIDIA GB10", "12.1")], "kernel": "6.11.0-1016-nvidia"},
        "pass",
    ),
    # faults
    Case(
        "driver-broken-ollama",
        "Ollama brings its own CUDA, which no package shows",
        {**OLLAMA},
        "block",
        {"HOST-FAULT": "block"},
        fault=MISMATCH,
    ),
    Case(
        "not-loaded",
        "the driver is installed and not loaded",
        {"driver": None, "cuda_driver": None, "gpus": GONE},
        "block",
        {"HOST-NOT-LOADED": "block", "NOT-KNOWN-GPUS": "unknown"},
        fault=NOT_LOADED,
    ),
    Case(
        "not-loaded-unused",
        "an engine on the CPU works, and uses no GPU",
        {**CPU, "engine": "llama.cpp"},
        "warn",
        {"HOST-NOT-LOADED-UNUSED": "warn"},
        fault=NOT_LOADED,
    ),
    Case(
        "inforom",
        "a corrupted infoROM is a warning",
        {},
        "warn",
        {"HOST-WARNING": "warn"},
        warning="nvidia-smi: WARNING: infoROM is corrupted at gpu 0000:0B:00.0",
    ),
    Case(
        "no-driver-in-a-container",
        "in a container the way is another than installing a driver",
        {"driver": None, "cuda_driver": None, "container": "docker"},
        "block",
        {"DRV-ABSENT-CONTAINER": "block"},
    ),
    # parts of GPUs
    Case(
        "mig",
        "an instance is not the whole GPU",
        {"gpus": [{**H200, "mig": ["1g.18gb"]}], "gpus_wanted": 1},
        "pass",
        {"MIG-SLICE": "info"},
    ),
    Case(
        "mig-by-name",
        "a process that sees one instance reads of it in the GPU's name; vLLM before 0.24 takes no UUID of one",
        {
            **{"gpus": [{"name": "NVIDIA H100 80GB HBM3 MIG 2g.20gb"}], "gpus_wanted": 1},
            **{"engine_version": "0.23.0", "packages": {"torch": "2.11.0"}},
        },
        "warn",
        {"MIG-SLICE": "info", "MIG-UUID": "warn"},
    ),
    Case(
        "mig-two-gpus",
        "instances have no NVLink and no IPC",
        {"gpus": [{**H200, "mig": ["3g.71gb"]}] * 2, "gpus_wanted": 2},
        "warn",
        {"FABRIC-NOT-KNOWN": "warn", "MIG-SEVERAL": "warn", "MIG-SLICE": "info"},
    ),
    Case(
        "mig-empty",
        "MIG mode without an instance",
        {"gpus": [{**H200, "mig": []}]},
        "block",
        {"MIG-EMPTY": "block"},
    ),
    Case("vgpu", "one vGPU of the C series", {"gpus": [gpu("NVIDIA L40S-48C", "8.9")]}, "pass"),
    Case(
        "vgpu-two",
        "peer-to-peer between vGPUs",
        {"gpus": [gpu("NVIDIA L40S-48C", "8.9")] * 2, "gpus_wanted": 2},
        "warn",
        {"VGPU-SEVERAL": "warn"},
    ),
    Case(
        "whole-two",
        "whole GPUs whose names end in a size are not vGPUs",
        {"gpus": [gpu("NVIDIA A100-PCIE-40GB", "8.0")] * 2, "gpus_wanted": 2},
        "pass",
    ),
    Case(
        "vgpu-desktop",
        "B profiles are for desktops",
        {"gpus": [gpu("NVIDIA A40-8B", "8.6")]},
        "warn",
        {"VGPU-SERIES": "warn"},
    ),
    Case(
        "vgpu-unlicensed",
        "a vGPU needs a licence",
        {"gpus": [{**gpu("NVIDIA L40S-48C", "8.9"), "virtual": "vgpu", "licensed": False}]},
        "warn",
        {"VGPU-LICENCE": "warn"},
    ),
    Case(
        "passthrough",
        "a GPU passed through is a whole one",
        {"gpus": [{**L4, "virtual": "passthrough"}]},
        "pass",
    ),
    Case(
        "wsl-tcc",
        "WSL reaches no GPU in TCC mode",
        {"kernel": "6.6.87.2-microsoft-standard-WSL2", "gpus": [{**RTX4090, "driver_model": "TCC"}]},
        "block",
        {"WSL-TCC": "block"},
    ),
    Case(
        "wsl-wddm",
        "but in WDDM mode",
        {"kernel": "6.6.87.2-microsoft-standard-WSL2", "gpus": [{**RTX4090, "driver_model": "WDDM"}]},
        "pass",
    ),
    # NVSwitch
    Case("hgx", "whether the fabric manager runs is not known", HGX, "warn", FABRIC_WARN),
    Case(
        "hgx-running",
        "it runs",
        {**HGX, "fabric_manager": "running", "fabric_manager_version": "580.95.05"},
        "pass",
    ),
    Case(
        "hgx-stopped",
        "it does not",
        {**HGX, "fabric_manager": "stopped"},
        "block",
        {"FABRIC-STOPPED": "block"},
    ),
    Case(
        "hgx-other-version",
        "it is of another driver",
        {**HGX, "fabric_manager": "running", "fabric_manager_version": "580.82.07"},
        "block",
        {"FABRIC-VERSION": "block"},
    ),
    Case(
        "hgx-part",
        "a part of a board that always has one",
        {"gpus": board("NVIDIA H200", 2)},
        "warn",
        FABRIC_WARN,
    ),
    Case(
        "hgx-half",
        "four of them may have no NVSwitch",
        {"gpus": board("NVIDIA H100 80GB HBM3", 4)},
        "pass",
        {"FABRIC-PERHAPS": "info"},
    ),
    Case("one-h200", "one GPU asks for none", {}, "pass"),
    Case("nvl", "NVL cards are not an HGX board", {"gpus": board("NVIDIA H200 NVL")}, "pass"),
    Case("pcie", "nor are PCIe cards", {"gpus": [gpu("NVIDIA A100 80GB PCIe", "8.0")] * 8}, "pass"),
    *(
        Case(f"hgx-{name}", "each kind of board", {"gpus": [gpu(name, capability)] * 8}, "warn", FABRIC_WARN)
        for name, capability in (
            ("NVIDIA A100-SXM4-80GB", "8.0"),
            ("NVIDIA A800-SXM4-80GB", "8.0"),
            ("NVIDIA B200", "10.0"),
            ("NVIDIA B300 SXM6 AC", "10.3"),
            ("NVIDIA H100 80GB HBM3", "9.0"),
            ("NVIDIA H20", "9.0"),
            ("NVIDIA H800", "9.0"),
        )
    ),
    Case(
        "hgx-2",
        "and that of Volta",
        {"gpus": [gpu("Tesla V100-SXM3-32GB", "7.0")] * 16, **TRANSFORMERS, "cuda_build": "12.6"},
        "warn",
        FABRIC_WARN,
    ),
    Case(
        "dgx-a100-unused",
        "not for an engine on the CPU",
        {"gpus": [A100] * 8, **LLAMA_CUDA, "cuda_build": None},
        "pass",
        {"HOUSE-GPU-IDLE": "info"},
    ),
]
