"""Hosts and stacks with the verdict and the reasons that an expert gives (truth table of the compatibility stage)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tasks.compatibility.models import Measurement, Sighting

GONE: Any = object()
"""The key is left out: the fact is not known."""


def gpu(name: str, capability: str | None = None) -> dict[str, Any]:
    return {"name": name} | ({"compute_capability": capability} if capability else {})


H200, A100, V100, T4, L4 = (
    gpu("NVIDIA H200", "9.0"),
    gpu("NVIDIA A100-SXM4-80GB", "8.0"),
    gpu("Tesla V100-SXM2-32GB", "7.0"),
    gpu("Tesla T4", "7.5"),
    gpu("NVIDIA L4", "8.9"),
)
RTX4090, RTX5090 = gpu("NVIDIA GeForce RTX 4090", "8.9"), gpu("NVIDIA GeForce RTX 5090", "12.0")

CURRENT: dict[str, Any] = {
    "driver": "580.95.05",
    "cuda_driver": "13.0",
    "nvcc": None,
    "gpus": [H200],
    "glibc": "2.36",
    "distribution": "debian 12",
    "engine": "vllm",
    "engine_version": "0.32.0",
    "packages": {"torch": "2.13.0", "transformers": "5.17.0"},
    "cuda_build": "13.0",
    "family": None,
    "dtype": None,
    "forward_compat": False,
}
"""A host and stack that go together; each case changes what it is about."""

CPU = {"driver": None, "cuda_driver": None, "gpus": [], "cuda_build": None, "packages": {}}
R535 = {"driver": "535.154.05", "cuda_driver": "12.2"}
R550 = {"driver": "550.54.14", "cuda_driver": "12.4"}
R525 = {"driver": "525.85.12", "cuda_driver": "12.0"}
OLD_VLLM = {"engine_version": "0.11.2", "packages": {"torch": "2.9.0", "transformers": "4.57.0"}}
TRANSFORMERS = {"engine": "transformers", "engine_version": "5.17.0", "packages": {"torch": "2.10.0"}}
CVE = {"DRV-SEC-5520": "info"}


@dataclass(frozen=True)
class Case:
    """What differs from CURRENT, the verdict, the rules that speak, and why that is right."""

    name: str
    why: str
    facts: dict[str, Any]
    verdict: str
    rules: dict[str, str] = field(default_factory=dict)
    sightings: tuple[Sighting, ...] = ()
    fault: str | None = None
    measurements: tuple[Measurement, ...] = ()


def saw(fact: str, **values: str | None) -> tuple[Sighting, ...]:
    return tuple(Sighting(fact=fact, source=source, value=value) for source, value in values.items())


CASES = [
    # what goes together
    Case("current", "driver, CUDA 13 build and Hopper go together", {}, "pass"),
    Case(
        "cpu-llama",
        "an engine that runs on the processor needs no GPU",
        {**CPU, "engine": "llama.cpp"},
        "pass",
    ),
    Case("cpu-ollama", "so does Ollama", {**CPU, "engine": "ollama"}, "pass"),
    Case("cpu-dify", "Dify needs no GPU", {**CPU, "engine": "dify"}, "pass"),
    Case(
        "cpu-cuda-wheel",
        "CUDA wheels are dead weight on a host without a GPU, not an obstacle",
        {**CPU, **TRANSFORMERS, "cuda_build": "12.8"},
        "pass",
        {"CUDA-UNUSED": "info"},
    ),
    Case(
        "cpu-build-of-vllm",
        "the CPU build of vLLM says so in its version",
        {**CPU, "engine_version": "0.32.0+cpu"},
        "pass",
    ),
    Case(
        "backward",
        "drivers stay compatible with all older CUDA; the 'max' column of NVIDIA's table is no limit",
        {"cuda_build": "11.8", **TRANSFORMERS, "packages": {"torch": "2.6.0"}},
        "pass",
    ),
    Case(
        "v100-cu126",
        "V100 on its last driver branch and an old enough CUDA",
        {"gpus": [V100], "cuda_build": "12.6", **TRANSFORMERS},
        "pass",
    ),
    Case(
        "v100-old-vllm",
        "vLLM before 0.9 still carried Volta",
        {"gpus": [V100], "cuda_build": "12.4", "engine_version": "0.8.5", "packages": {"torch": "2.6.0"}},
        "pass",
    ),
    Case(
        "sass-of-same-major",
        "machine code for 8.0 runs on 8.9, though CUDA 11.7 does not know 8.9",
        {"gpus": [L4], "cuda_build": "11.7", **TRANSFORMERS, "packages": {"torch": "2.0.1"}},
        "pass",
    ),
    Case(
        "compute-capability-by-name",
        "the table knows an H200 without being told",
        {"gpus": [gpu("NVIDIA H200")]},
        "pass",
    ),
    Case(
        "newer-branch",
        "a driver newer than the table is at least what it says of itself",
        {"driver": "650.10", "cuda_driver": "13.9", "cuda_build": "13.9"},
        "pass",
    ),
    # what is not known
    Case(
        "no-driver-key",
        "without the driver nothing can be passed",
        {"driver": GONE},
        "unknown",
        {"NOT-KNOWN-DRIVER": "unknown"},
    ),
    Case(
        "no-build-key",
        "nor without the packages' CUDA",
        {"cuda_build": GONE},
        "unknown",
        {"NOT-KNOWN-CUDA-BUILD": "unknown"},
    ),
    Case("no-gpus-key", "nor without the GPUs", {"gpus": GONE}, "unknown", {"NOT-KNOWN-GPUS": "unknown"}),
    Case(
        "cpu-no-driver-key",
        "not even on the processor",
        {**CPU, "engine": "llama.cpp", "driver": GONE},
        "unknown",
        {"NOT-KNOWN-DRIVER": "unknown"},
    ),
    Case(
        "no-glibc-key",
        "another missing key only adds a finding",
        {"glibc": GONE},
        "pass",
        {"NOT-KNOWN-GLIBC": "info"},
    ),
    Case(
        "no-engine-key",
        "likewise the engine",
        {"engine": GONE, "engine_version": GONE},
        "pass",
        {"NOT-KNOWN-ENGINE": "info", "NOT-KNOWN-ENGINE-VERSION": "info"},
    ),
    Case(
        "strange-gpu",
        "a GPU whose capability nobody knows decides nothing",
        {"gpus": [gpu("Prototype X")]},
        "unknown",
        {"NOT-KNOWN-COMPUTE-CAPABILITY": "unknown"},
    ),
    Case(
        "block-beats-unknown",
        "of several findings the first of block, warn, unknown",
        {"gpus": GONE, **R535},
        "block",
        {"NOT-KNOWN-GPUS": "unknown", "DRV-FLOOR-13": "block", "KB-03": "block", "ART-1-ELSE": "warn", **CVE},
    ),
    Case(
        "unlisted-engine",
        "driver and CUDA are judged for an engine without a row",
        {"engine": "tgi"},
        "pass",
        {"ENGINE-NOT-LISTED": "info"},
    ),
    Case(
        "unlisted-engine-cpu",
        "whether it runs on a processor cannot be said",
        {**CPU, "engine": "tgi"},
        "unknown",
        {"ENGINE-NOT-LISTED": "unknown"},
    ),
    Case(
        "cuda-14",
        "no lowest driver is known for CUDA 14",
        {"cuda_build": "14.0"},
        "unknown",
        {"DRV-CUDA-AFTER-TABLE": "unknown"},
    ),
    Case(
        "before-the-table",
        "nor one for a driver of 2018",
        {
            "driver": "410.48",
            "cuda_driver": "10.0",
            "cuda_build": "10.0",
            "gpus": [V100],
            "engine": "transformers",
            "engine_version": "4.0",
            "packages": {},
        },
        "unknown",
        {"DRV-BEFORE-TABLE": "unknown"},
    ),
    # driver and CUDA
    Case(
        "floor-13",
        "CUDA 13 begins at driver 580",
        {"driver": "575.57.08", "cuda_driver": "12.9"},
        "block",
        {"DRV-FLOOR-13": "block", "KB-03": "block"},
    ),
    Case(
        "floor-12",
        "CUDA 12 begins at 525.60.13",
        {"driver": "525.53", "cuda_driver": "12.0", "cuda_build": "12.0", "gpus": [A100], **TRANSFORMERS},
        "block",
        {"DRV-FLOOR-12": "block", "ART-2-ELSE": "info"},
    ),
    Case(
        "floor-12-numeric",
        "525.9 is older than 525.60: versions are numbers, not text",
        {"driver": "525.9", "cuda_driver": "12.0", "cuda_build": "12.0", "gpus": [A100], **TRANSFORMERS},
        "block",
        {"DRV-FLOOR-12": "block", "ART-2-ELSE": "info"},
    ),
    Case(
        "floor-11",
        "CUDA 11 begins at 450.80.02",
        {
            "driver": "450.51.06",
            "cuda_driver": "11.0",
            "cuda_build": "11.8",
            "gpus": [A100],
            **TRANSFORMERS,
            "packages": {},
        },
        "block",
        {"DRV-FLOOR-11": "block"},
    ),
    Case(
        "native-11-0",
        "the driver that came with CUDA 11.0 runs 11.0, though older than the floor",
        {
            "driver": "450.51.06",
            "cuda_driver": "11.0",
            "cuda_build": "11.0",
            "gpus": [A100],
            **TRANSFORMERS,
            "packages": {},
        },
        "pass",
    ),
    Case(
        "minor-11",
        "minor-version compatibility within CUDA 11",
        {
            "driver": "470.82.01",
            "cuda_driver": "11.4",
            "cuda_build": "11.8",
            "gpus": [A100],
            **TRANSFORMERS,
            "packages": {},
        },
        "warn",
        {"DRV-MINOR-11": "warn"},
    ),
    Case(
        "minor-12",
        "within CUDA 12, without PTX",
        {**R550, "cuda_build": "12.8", **OLD_VLLM},
        "warn",
        {"DRV-MINOR-12": "warn"},
    ),
    Case("minor-13", "within CUDA 13", {"cuda_build": "13.2"}, "warn", {"DRV-MINOR-13": "warn"}),
    Case(
        "before-11",
        "CUDA 10.2 has no minor-version compatibility",
        {
            "driver": "418.226.00",
            "cuda_driver": "10.1",
            "cuda_build": "10.2",
            "gpus": [V100],
            "engine": "transformers",
            "engine_version": "4.0",
            "packages": {},
        },
        "block",
        {"DRV-NO-MINOR": "block"},
    ),
    Case(
        "gpus-without-driver",
        "GPUs, a CUDA build, and no driver",
        {"driver": None, "cuda_driver": None},
        "block",
        {"DRV-ABSENT": "block"},
    ),
    Case(
        "vgpu-manager",
        "535.154.02 is a hypervisor's driver",
        {"driver": "535.154.02", "cuda_driver": "12.2", "cuda_build": "12.2", **OLD_VLLM},
        "warn",
        {"DRV-VGPU": "warn", "ART-1": "info", **CVE},
    ),
    Case(
        "compat-on-path",
        "CUDA newer than its driver's: cuda-compat is there; the kernel driver counts",
        {**R550, "cuda_driver": "12.8", "cuda_build": "12.4", **OLD_VLLM},
        "pass",
        {"FWD-UMD": "info"},
    ),
    Case(
        "forward-data-center",
        "forward compatibility is for data-center GPUs",
        {**R550, "cuda_driver": "13.0", "forward_compat": True},
        "warn",
        {"FWD-YES": "warn"},
    ),
    Case(
        "forward-geforce",
        "and fails on GeForce with error 804",
        {**R550, "cuda_driver": "13.0", "forward_compat": True, "gpus": [RTX4090]},
        "block",
        {"FWD-NO": "block"},
    ),
    Case(
        "forward-workstation",
        "on select workstation GPUs",
        {**R550, "cuda_driver": "13.0", "forward_compat": True, "gpus": [gpu("NVIDIA RTX A6000", "8.6")]},
        "warn",
        {"FWD-SOME": "warn"},
    ),
    Case(
        "nvcc-newer",
        "what FlashInfer compiles with nvcc 13.0 may not load on a driver of 12.8",
        {"driver": "570.124.06", "cuda_driver": "12.8", "nvcc": "13.0", "cuda_build": "12.8", **OLD_VLLM},
        "warn",
        {"NVCC-NEWER": "warn"},
    ),
    # GPU and CUDA
    Case(
        "v100-cuda-13",
        "CUDA 13 dropped Volta",
        {"gpus": [V100], "engine": "llama.cpp", "packages": {}},
        "block",
        {"ARCH-DROPPED": "block"},
    ),
    Case(
        "v100-590",
        "R580 is Volta's last driver branch",
        {"gpus": [V100], "driver": "590.48.01", "cuda_driver": "13.1", "cuda_build": "12.6", **TRANSFORMERS},
        "block",
        {"DRV-ARCH-LAST": "block"},
    ),
    Case(
        "v100-torch-cu128",
        "torch 2.11 dropped Volta from its cu128 build too",
        {"gpus": [V100], "cuda_build": "12.8", **TRANSFORMERS, "packages": {"torch": "2.11.0"}},
        "block",
        {"KB-05": "block"},
    ),
    Case(
        "mixed-gpus",
        "one old GPU among new ones is enough",
        {"gpus": [H200, V100], "engine": "llama.cpp", "packages": {}},
        "block",
        {"ARCH-DROPPED": "block"},
    ),
    Case(
        "rtx5090-cu126",
        "CUDA 12.6 has no code for Blackwell",
        {"gpus": [RTX5090], "cuda_build": "12.6", **TRANSFORMERS},
        "block",
        {"ARCH-TOO-NEW": "block"},
    ),
    Case(
        "rtx5090-torch26",
        "nor has torch before 2.7",
        {"gpus": [RTX5090], "cuda_build": "12.8", **TRANSFORMERS, "packages": {"torch": "2.6.0"}},
        "block",
        {"KB-06": "block"},
    ),
    Case(
        "driver-before-gpu",
        "a driver of CUDA 12.4 does not know Blackwell",
        {**R550, "gpus": [RTX5090], "cuda_build": "12.8", **TRANSFORMERS},
        "block",
        {"DRV-TOO-OLD-FOR-GPU": "block", "DRV-MINOR-12": "warn"},
    ),
    # engines
    Case("vllm-without-gpu", "vLLM's wheels need a GPU", {**CPU}, "block", {"ENG-NEEDS-GPU": "block"}),
    Case(
        "vllm-without-cuda",
        "and a CUDA build",
        {"cuda_build": None, "packages": {}},
        "block",
        {"ENG-NEEDS-CUDA": "block"},
    ),
    Case(
        "gpu-idle",
        "llama.cpp's CPU build leaves the GPU idle, and works",
        {"engine": "llama.cpp", "cuda_build": None, "packages": {}},
        "pass",
        {"HOUSE-GPU-IDLE": "info"},
    ),
    Case(
        "vllm-v100",
        "vLLM from 0.9 on needs 7.5",
        {"gpus": [V100], "cuda_build": "12.6", **OLD_VLLM},
        "block",
        {"ENG-VLLM-CC": "block"},
    ),
    Case("vllm-t4", "which a T4 has", {"gpus": [T4], "dtype": "float16"}, "pass"),
    Case(
        "sglang-v100",
        "FlashInfer needs 7.5",
        {"gpus": [V100], "cuda_build": "12.6", "engine": "sglang", "engine_version": "0.5.3", "packages": {}},
        "block",
        {"ENG-SGLANG-CC": "block"},
    ),
    Case(
        "trtllm-t4",
        "TensorRT-LLM begins with Ampere",
        {"gpus": [T4], "engine": "tensorrt-llm", "engine_version": "1.2.1", "packages": {}},
        "block",
        {"ENG-TRTLLM-CC": "block"},
    ),
    Case(
        "ollama-kepler",
        "below 5.0 Ollama serves on the processor, silently",
        {
            "gpus": [gpu("Tesla K80", "3.7")],
            "engine": "ollama",
            "engine_version": "0.24.0",
            "cuda_build": None,
            "packages": {},
            "driver": "550.54.14",
            "cuda_driver": "12.4",
        },
        "warn",
        {"ENG-CC-LOW": "warn"},
    ),
    Case(
        "ollama-525",
        "Ollama needs driver 531",
        {
            **R525,
            "gpus": [A100],
            "engine": "ollama",
            "engine_version": "0.24.0",
            "cuda_build": None,
            "packages": {},
        },
        "block",
        {"ENG-OLLAMA-531": "block"},
    ),
    Case(
        "ollama-30-on-535",
        "the article's row says ollama on 535; from 0.30 on it fails there",
        {
            **R535,
            "gpus": [A100],
            "engine": "ollama",
            "engine_version": "0.30.0",
            "cuda_build": "12.2",
            "packages": {},
        },
        "block",
        {"KB-04": "block", "ART-1": "info", **CVE},
    ),
    Case(
        "ollama-pascal",
        "and compiles PTX for Pascal",
        {
            **R550,
            "gpus": [gpu("Tesla P40", "6.1")],
            "engine": "ollama",
            "engine_version": "0.30.11",
            "cuda_build": None,
            "packages": {},
        },
        "block",
        {"ENG-OLLAMA-570": "block"},
    ),
    Case(
        "llama-compressed",
        "llama.cpp of CUDA 12.8 compresses kernels beyond driver 535",
        {**R535, "gpus": [A100], "engine": "llama.cpp", "cuda_build": "12.8", "packages": {}},
        "block",
        {"ENG-FATBIN": "block", "DRV-MINOR-12": "warn", "ART-1-ELSE": "info", **CVE},
    ),
    # types of weights
    Case(
        "bf16-v100",
        "Volta has no bfloat16",
        {"gpus": [V100], "cuda_build": "12.6", "dtype": "bf16", **TRANSFORMERS},
        "block",
        {"ARCH-BF16": "block"},
    ),
    Case(
        "fp8-a100",
        "Ampere unpacks FP8 weights, and computes in 16 bits",
        {"gpus": [A100], "dtype": "fp8"},
        "warn",
        {"ARCH-FP8-WEIGHTS": "warn"},
    ),
    Case(
        "fp8-t4",
        "Turing has no FP8 at all",
        {"gpus": [T4], "dtype": "float8_e4m3fn"},
        "block",
        {"ARCH-FP8": "block"},
    ),
    Case("fp8-l4", "Ada has it", {"gpus": [L4], "dtype": "fp8"}, "pass"),
    Case(
        "fp8-cpu",
        "half a minute a request on a processor",
        {**CPU, "engine": "llama.cpp", "dtype": "fp8"},
        "block",
        {"KB-21": "block"},
    ),
    Case("fp4-h200", "FP4 begins with Blackwell", {"dtype": "nvfp4"}, "block", {"ARCH-FP4": "block"}),
    Case(
        "fp8-deepseek-a100",
        "DeepSeek's own FP8 kernels do not compile there",
        {"gpus": [A100], "dtype": "fp8", "family": "DeepSeek"},
        "block",
        {"KB-18": "block", "ARCH-FP8-WEIGHTS": "warn"},
    ),
    Case(
        "fp16-deepseek",
        "DeepSeek overflows in float16, on any driver",
        {"dtype": "float16", "family": "deepseek"},
        "block",
        {"KB-19": "block"},
    ),
    # packages
    Case(
        "numpy-2",
        "torch before 2.3 and numpy 2",
        {**TRANSFORMERS, "cuda_build": "12.1", "packages": {"torch": "2.2.2", "numpy": "2.0.0"}},
        "block",
        {"KB-01": "block"},
    ),
    Case(
        "torch-13-on-570",
        "the index's torch is a CUDA 13 build, whatever else is said",
        {
            "driver": "570.124.06",
            "cuda_driver": "12.8",
            "cuda_build": GONE,
            **TRANSFORMERS,
            "packages": {"torch": "2.13.0"},
        },
        "block",
        {"KB-03": "block", "NOT-KNOWN-CUDA-BUILD": "unknown"},
    ),
    Case(
        "flash-attn-abi",
        "prebuilt for another C++ ABI",
        {"cuda_build": "12.4", **TRANSFORMERS, "packages": {"torch": "2.6.0", "flash-attn": "2.8.3"}},
        "block",
        {"KB-02-A": "block"},
    ),
    Case(
        "flash-attn-abi-older",
        "the older one against newer torch",
        {"cuda_build": "12.6", **TRANSFORMERS, "packages": {"torch": "2.6.0", "Flash_Attn": "2.7.4.post1"}},
        "block",
        {"KB-02-B": "block"},
    ),
    Case(
        "flash-attn-t4",
        "flash-attn begins with Ampere",
        {"gpus": [T4], **TRANSFORMERS, "packages": {"torch": "2.11.0", "flash-attn": "2.8.3.post2"}},
        "block",
        {"FLASH-ATTN-CC": "block"},
    ),
    Case(
        "nccl",
        "NCCL takes memory while graphs are captured",
        {"cuda_build": "12.1", **TRANSFORMERS, "packages": {"torch": "2.3.1", "nvidia-nccl-cu12": "2.20.5"}},
        "warn",
        {"KB-12": "warn"},
    ),
    Case(
        "vllm-transformers-5",
        "vLLM before 0.19.1 does not know transformers 5",
        {**OLD_VLLM, "cuda_build": "12.8", "packages": {"torch": "2.9.0", "transformers": "5.1.0"}},
        "block",
        {"KB-14": "block"},
    ),
    Case(
        "vllm-transformers-low",
        "vLLM 0.32 asks for 5.16.1",
        {"packages": {"torch": "2.13.0", "transformers": "5.10.0"}},
        "block",
        {"PIN-VLLM-TRANSFORMERS-LOW": "block"},
    ),
    Case(
        "vllm-transformers-high",
        "and for less than 5.20",
        {"packages": {"torch": "2.13.0", "transformers": "5.20.0"}},
        "block",
        {"PIN-VLLM-TRANSFORMERS-HIGH": "block"},
    ),
    Case(
        "transformers-torch",
        "transformers 5.23 asks for torch 2.5",
        {**TRANSFORMERS, "cuda_build": "12.1", "packages": {"torch": "2.4.1", "transformers": "5.23.0"}},
        "block",
        {"PIN-TRANSFORMERS-TORCH": "block"},
    ),
    Case(
        "vllm-pydantic",
        "vLLM of 2023 and pydantic 2",
        {"engine_version": "0.2.7", "cuda_build": "12.1", "packages": {"torch": "2.1.2", "pydantic": "2.5"}},
        "block",
        {"KB-16": "block"},
    ),
    Case(
        "engine-version-from-packages",
        "the lock says which vLLM it is",
        {
            "engine_version": GONE,
            "cuda_build": "12.8",
            "packages": {"vllm": "0.11.2", "transformers": "5.1.0"},
        },
        "block",
        {"KB-14": "block"},
    ),
    Case(
        "glibc-torch",
        "torch from 2.7 on asks for glibc 2.28",
        {"glibc": "2.17", **TRANSFORMERS},
        "block",
        {"GLIBC-TORCH": "block"},
    ),
    Case(
        "glibc-vllm-16",
        "vLLM 0.16 to 0.19 for 2.31",
        {"glibc": "2.28", "engine_version": "0.19.1", "cuda_build": "12.8", "packages": {}},
        "block",
        {"GLIBC-VLLM-16": "block"},
    ),
    Case(
        "glibc-vllm-20-0",
        "vLLM 0.20.0 for 2.34, though its tag says less",
        {"glibc": "2.31", "engine_version": "0.20.0", "packages": {}},
        "block",
        {"KB-09": "block"},
    ),
    Case(
        "glibc-vllm-20",
        "vLLM 0.20.2 for 2.35",
        {"glibc": "2.34", "engine_version": "0.20.2", "packages": {}},
        "block",
        {"GLIBC-VLLM-20": "block"},
    ),
    Case(
        "glibc-vllm-25",
        "vLLM from 0.25 on for 2.28 again",
        {"glibc": "2.27", "packages": {}},
        "block",
        {"GLIBC-VLLM-25": "block"},
    ),
    Case(
        "glibc-sglang",
        "SGLang from 0.5.12 on for 2.34",
        {"glibc": "2.31", "engine": "sglang", "engine_version": "0.5.23", "packages": {}},
        "block",
        {"GLIBC-SGLANG": "block"},
    ),
    # the article's rows
    Case(
        "article-row-1",
        "inside the article's first row and by NVIDIA's rule: nothing to say but the CVEs",
        {**R535, "cuda_build": "12.2", **OLD_VLLM},
        "pass",
        CVE,
    ),
    Case(
        "article-row-1-older-cuda",
        "the article has no CUDA 11.8 for 535; NVIDIA runs it, and is right",
        {**R535, "cuda_build": "11.8", **TRANSFORMERS, "packages": {}, "gpus": [A100]},
        "pass",
        {"ART-1-ELSE": "info", **CVE},
    ),
    Case(
        "article-row-1-newer-cuda",
        "nor 12.4; NVIDIA runs it without PTX",
        {**R535, "cuda_build": "12.4", **TRANSFORMERS, "packages": {}, "gpus": [A100]},
        "warn",
        {"DRV-MINOR-12": "warn", "ART-1-ELSE": "info", **CVE},
    ),
    Case(
        "article-row-2",
        "the article's second row is for Dify, which needs no driver at all",
        {
            **R525,
            "gpus": [A100],
            "cuda_build": "11.8",
            "engine": "dify",
            "engine_version": None,
            "packages": {},
        },
        "pass",
        {"ART-2": "info"},
    ),
    Case(
        "article-row-2-native",
        "the article stops at 11.8; 525.85.12 came with CUDA 12.0",
        {**R525, "gpus": [A100], "cuda_build": "12.0", **TRANSFORMERS, "packages": {}},
        "pass",
        {"ART-2-ELSE": "info"},
    ),
    Case(
        "article-row-2-cuda-13",
        "where NVIDIA does not contradict it, the article's row warns",
        {**R525, "gpus": [A100], "cuda_build": "13.0", **TRANSFORMERS, "packages": {}},
        "block",
        {"DRV-FLOOR-13": "block", "ART-2-ELSE": "warn"},
    ),
    Case(
        "article-torch-transformers",
        "nobody could reproduce it: a warning, no more",
        {
            **TRANSFORMERS,
            "gpus": [A100],
            "cuda_build": "11.7",
            "packages": {"torch": "2.0.1", "transformers": "4.26.1"},
        },
        "warn",
        {"ART-KB-1": "warn"},
    ),
    Case(
        "article-torch-transformers-numpy",
        "with numpy 2 there is a better explanation",
        {
            **TRANSFORMERS,
            "gpus": [A100],
            "cuda_build": "11.7",
            "packages": {"torch": "2.0.1", "transformers": "4.26.1", "numpy": "2.1.0"},
        },
        "block",
        {"ART-KB-1": "info", "KB-01": "block"},
    ),
    Case(
        "article-deepseek-driver",
        "not the driver: float16 overflows on any",
        {
            "driver": "515.65.01",
            "cuda_driver": "11.7",
            "cuda_build": "11.7",
            "gpus": [A100],
            **TRANSFORMERS,
            "packages": {},
            "family": "deepseek",
            "dtype": "float16",
        },
        "block",
        {"KB-19": "block", "ART-KB-2": "info"},
    ),
    # measured on this host
    Case(
        "driver-twice",
        "NVML and nvidia-smi name different drivers",
        {},
        "warn",
        {"HOST-DRIVER-TWICE": "warn"},
        sightings=saw("driver", NVML="580.95.05", smi="570.124.06"),
    ),
    Case(
        "cuda-twice",
        "or different CUDA versions",
        {},
        "warn",
        {"HOST-CUDA-TWICE": "warn"},
        sightings=saw("cuda_driver", NVML="13.0", smi="12.8"),
    ),
    Case(
        "gpus-twice",
        "or count GPUs differently",
        {},
        "warn",
        {"HOST-GPUS-TWICE": "warn"},
        sightings=saw("gpu_count", NVML="8", smi="7"),
    ),
    Case(
        "one-source",
        "a source that saw nothing contradicts nobody",
        {},
        "pass",
        sightings=saw("driver", NVML="580.95.05", smi=None),
    ),
    Case(
        "driver-broken",
        "a loaded driver that does not answer",
        {"gpus": [gpu("NVIDIA H200")]},
        "block",
        {"HOST-FAULT": "block"},
        fault="NVML: Driver/library version mismatch",
    ),
    Case(
        "driver-broken-unused",
        "does not stop an engine without CUDA",
        {"engine": "llama.cpp", "cuda_build": None, "packages": {}},
        "warn",
        {"HOST-FAULT-UNUSED": "warn", "HOUSE-GPU-IDLE": "info"},
        fault="NVML: GPU is lost",
    ),
    Case(
        "gpu-hidden",
        "a container without the NVIDIA runtime sees the host's driver, and no GPU",
        {**CPU, "driver": "580.95.05", "engine": "llama.cpp"},
        "pass",
        {"HOST-GPU-HIDDEN": "info"},
    ),
    Case(
        "failed-measurement",
        "a failure seen here outweighs every table",
        {},
        "block",
        {"MEASURED-IMPORT": "block"},
        measurements=(Measurement(kind="import", passed=False, evidence="libcudart.so.13: cannot open"),),
    ),
    Case(
        "cleared-warning",
        "an engine that started clears a warning",
        {"cuda_build": "13.2"},
        "pass",
        {"DRV-MINOR-13": "info"},
        measurements=(Measurement(kind="engine-start", passed=True, evidence="completed a prompt"),),
    ),
    Case(
        "overridden-block",
        "and turns a block into a recorded override",
        {"gpus": [V100], "cuda_build": "12.6", **OLD_VLLM},
        "warn",
        {"ENG-VLLM-CC": "warn"},
        measurements=(Measurement(kind="kernel", passed=True, evidence="ran"),),
    ),
    Case(
        "unrelated-proof",
        "an import proves nothing about a GPU's capability",
        {"gpus": [V100], "cuda_build": "12.6", **OLD_VLLM},
        "block",
        {"ENG-VLLM-CC": "block"},
        measurements=(Measurement(kind="import", passed=True, evidence="imported"),),
    ),
]
