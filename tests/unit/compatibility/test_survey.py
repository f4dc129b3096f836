"""A survey asks every source and keeps who said what; without a GPU that is an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inline_snapshot import snapshot
from recorded_host import Readings, RecordedHost

from tasks.compatibility.apply import survey_host
from tasks.compatibility.engines import cuda_build_of, engine_of
from tasks.compatibility.models import (
    CompatibilityRequest,
    CudaLibraryReading,
    FabricReading,
    KernelReading,
    Measurement,
    NvmlReading,
    SmiReading,
    Survey,
    SystemReading,
    TegraReading,
    ToolkitReading,
    TorchReading,
)
from tasks.compatibility.plan import complete, judge
from tasks.compatibility.report import answer, headline, markdown, numbers, survey_rows
from tasks.compatibility.rules import load_tables
from tasks.compatibility.subject import describe, disagreements
from tasks.core.facts import Disk, Facts, Gpu
from tasks.core.spec_kinds import EngineKind, Target

GPU = Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=150_754_820_096, uuid="GPU-1")
NVML = NvmlReading(available=True, driver="570.124.06", cuda_driver="12.8", gpus=(GPU,))
KERNEL = KernelReading(driver="570.124.06", gpus=(Gpu(name="NVIDIA H200", uuid="GPU-1"),))
BROKEN = NvmlReading(fault="NVML: RM has detected an NVML/RM version mismatch.")


def survey(**readings: object) -> Survey:
    return survey_host(RecordedHost(Readings.model_validate(readings)))


def test_recorded_hosts_give_the_recorded_answers(repository: Path) -> None:
    found = survey_host(RecordedHost.load(repository / "tests/golden/hosts/debian-12-cpu.json"))
    request = CompatibilityRequest(engine=EngineKind.LLAMA_CPP, packages={"xllamacpp": "2026.10.11549"})
    result = judge(complete(request, found))
    assert (result.verdict.value, headline(result)) == ("pass", "CPU only, 0 findings")
    assert found.facts.known("gpus")
    assert found.facts.driver is None


def test_two_sources_that_agree() -> None:
    found = survey(
        nvml=NVML,
        kernel_driver=KERNEL,
        nvidia_smi=SmiReading(driver="570.124.06", cuda_driver="12.8", gpus=1),
    )
    assert (found.facts.driver, found.facts.cuda_driver, found.facts.gpus) == ("570.124.06", "12.8", (GPU,))
    assert disagreements(found.sightings) == {}
    assert found.fault is None


def test_disagreement_is_a_finding_that_names_both() -> None:
    found = survey(nvml=NVML, nvidia_smi=SmiReading(driver="570.124.06", cuda_driver="13.0", gpus=2))
    findings = {finding.rule: finding.message for finding in judge(found).findings}
    assert findings["HOST-CUDA-TWICE"] == snapshot(
        "two sources disagree on the CUDA version of the driver: NVML says 12.8, nvidia-smi says 13.0"
    )
    assert "NVML says 1, nvidia-smi says 2" in findings["HOST-GPUS-TWICE"]


def test_a_driver_that_does_not_answer_is_named_by_the_kernel_module() -> None:
    found = survey(nvml=BROKEN, kernel_driver=KERNEL, nvidia_smi=SmiReading(fault="nvidia-smi: mismatch"))
    assert found.fault == BROKEN.fault
    assert (found.facts.driver, found.facts.gpus) == (KERNEL.driver, KERNEL.gpus)
    assert judge(found).verdict == "block"


def test_gpus_stay_unknown_where_nobody_can_list_them() -> None:
    found = survey(nvml=BROKEN, kernel_driver=KernelReading(driver="570.124.06"))
    assert not found.facts.known("gpus")


def test_nvidia_smi_alone_reveals_a_fault() -> None:
    found = survey(kernel_driver=KERNEL, nvidia_smi=SmiReading(fault="nvidia-smi: no devices were found"))
    assert found.fault == "nvidia-smi: no devices were found"


def test_a_container_without_the_nvidia_runtime_is_a_host_without_gpu() -> None:
    found = survey(kernel_driver=KERNEL)
    assert (found.facts.driver, found.facts.gpus, found.fault) == (KERNEL.driver, (), None)


def test_a_driver_that_is_installed_and_not_loaded_is_a_fault() -> None:
    fault = "nvidia-smi: couldn't communicate with the NVIDIA driver"
    found = survey(nvidia_smi=SmiReading(fault=fault))
    assert (found.facts.driver, found.facts.known("gpus"), found.fault) == (None, False, fault)


def test_nvidia_smi_of_an_image_is_no_fault() -> None:
    fault = "nvidia-smi: couldn't communicate with the NVIDIA driver"
    found = survey(nvidia_smi=SmiReading(fault=fault), system=SystemReading(container="docker"))
    assert (found.facts.driver, found.facts.gpus, found.fault) == (None, (), None)


UNKNOWN = KernelReading(driver="570.124.06", gpus=(Gpu(name="Unknown", uuid="GPU-????"),), listed=1)
NO_GPUS = NvmlReading(available=True, driver="570.124.06", cuda_driver="12.8")


def test_a_gpu_that_was_not_initialised_has_no_name() -> None:
    found = survey(nvml=NO_GPUS, kernel_driver=UNKNOWN)
    assert found.fault == "the kernel module lists 1 GPU, and NVML finds none"
    assert not found.facts.known("gpus")


def test_a_container_that_was_given_no_gpu_is_not_broken() -> None:
    found = survey(nvml=NO_GPUS, kernel_driver=UNKNOWN, system=SystemReading(container="docker"))
    assert (found.fault, found.facts.gpus) == (None, ())


def test_a_gpu_that_nvml_misses_is_counted_by_the_kernel_module() -> None:
    kernel = KERNEL.model_copy(update={"listed": 2})
    assert disagreements(survey(nvml=NVML, kernel_driver=kernel).sightings) == {
        "gpu_count": "NVML says 1, kernel module says 2"
    }
    inside = SystemReading(container="docker")
    assert disagreements(survey(nvml=NVML, kernel_driver=kernel, system=inside).sightings) == {}


def test_a_warning_of_nvidia_smi_is_not_a_fault() -> None:
    found = survey(nvml=NVML, nvidia_smi=SmiReading(driver="570.124.06", warning="infoROM is corrupted"))
    assert (found.fault, found.warning) == (None, "infoROM is corrupted")
    assert ("warning", "infoROM is corrupted") in survey_rows(found)
    assert "HOST-WARNING" in {finding.rule for finding in judge(found).findings}


def test_a_divided_gpu_is_shown_as_such() -> None:
    divided = [GPU.model_copy(update={"mig": mig}) for mig in (("1g.18gb", "2g.35gb"), ())]
    rows = dict(survey_rows(survey(nvml=NVML.model_copy(update={"gpus": divided}))))
    assert rows["GPUs"] == "NVIDIA H200 (9.0), MIG 1g.18gb 2g.35gb, NVIDIA H200 (9.0), MIG without instance"


JETSON = TegraReading(model="NVIDIA Jetson AGX Orin Developer Kit", chip="tegra234", l4t="35.3.1")


def test_a_jetson_without_nvml_has_its_gpu() -> None:
    found = survey(tegra=JETSON)
    assert (found.facts.driver, found.facts.gpus) == (
        "35.3.1",
        (Gpu(name="Jetson AGX Orin Developer Kit (tegra234)"),),
    )
    known = found.facts.model_copy(update={"cuda_build": "11.4", "engine": "llama.cpp"})
    subject = describe(found.model_copy(update={"facts": known}), load_tables())
    assert (subject.values["driver_cuda"], subject.values["tegra"]) == ("11.4", True)
    assert [gpu["gpu.compute_capability"] for gpu in subject.gpus or ()] == ["8.7"]


def test_one_gpu_outside_the_fabric_may_be_passed_through() -> None:
    facts = survey(nvml=NVML.model_copy(update={"fabric": False})).facts
    assert not facts.known("fabric_manager")


@pytest.mark.parametrize(
    ("nvml", "here", "known"),
    [
        (True, FabricReading(), ("running", None)),
        (False, FabricReading(running=True, version="570.124.06"), ("stopped", "570.124.06")),
        (None, FabricReading(running=True, version="570.124.06"), ("running", "570.124.06")),
        (None, FabricReading(running=False), ("stopped", None)),
        (None, FabricReading(), (None, None)),
    ],
)
def test_gpus_that_joined_the_fabric_prove_that_its_manager_runs(
    nvml: bool | None, here: FabricReading, known: tuple[str | None, str | None]
) -> None:
    facts = survey(nvml=NVML.model_copy(update={"fabric": nvml, "gpus": (GPU, GPU)}), fabric=here).facts
    assert (facts.fabric_manager, facts.fabric_manager_version) == known
    assert facts.known("fabric_manager") == (known[0] is not None)


def test_a_driver_that_is_there_and_cannot_be_read_is_not_known() -> None:
    found = survey(nvidia_smi=SmiReading(gpus=1))
    assert not found.facts.known("driver")
    assert judge(found).verdict == "unknown"
    assert not survey(nvml=NvmlReading(available=True, gpus=(GPU,))).facts.known("driver")


COMPAT = "/usr/local/cuda-13.0/compat/libcuda.so.580.65.06"
OWN = "/usr/lib/x86_64-linux-gnu/libcuda.so.570.124.06"


@pytest.mark.parametrize(
    ("path", "cuda", "loaded"),
    [
        (COMPAT, "13.0", True),
        (COMPAT, None, True),
        ("/opt/conda/cuda-compat/libcuda.so.580.65.06", "13.0", True),
        ("/opt/copied/libcuda.so.580.65.06", "13.0", True),
        (OWN, "12.8", False),
        (OWN, None, False),
        ("/opt/incompatible/libcuda.so.1", "12.8", False),
    ],
)
def test_a_forward_compatibility_library_is_noticed(path: str, cuda: str | None, loaded: bool) -> None:
    found = survey(nvml=NVML, cuda_library=CudaLibraryReading(path=path, cuda=cuda))
    assert found.facts.forward_compat is loaded
    rows = dict(survey_rows(found))
    assert (rows["libcuda.so.1"], rows["cuda-compat loaded"]) == (path, str(loaded).lower())


def test_a_library_that_the_loader_does_not_find_leaves_it_open() -> None:
    found = survey(nvml=NVML)
    assert not found.facts.known("forward_compat")
    assert dict(survey_rows(found))["libcuda.so.1"] == "none"


def test_cuda_compat_on_geforce_is_refused_by_what_was_loaded() -> None:
    gpu = Gpu(name="NVIDIA GeForce RTX 4090", compute_capability="8.9")
    nvml = NVML.model_copy(update={"cuda_driver": "13.0", "gpus": (gpu,)})
    found = survey(nvml=nvml, cuda_library=CudaLibraryReading(path=COMPAT, cuda="13.0"))
    facts = found.facts.model_copy(update={"cuda_build": "13.0"})
    rules = {finding.rule for finding in judge(found.model_copy(update={"facts": facts})).findings}
    assert "FWD-NO" in rules
    assert "FWD-UMD" not in rules


def test_without_a_driver_nothing_is_loaded_and_docker_is_not_asked() -> None:
    class NoDriver(RecordedHost):
        def cuda_library(self) -> None:
            raise AssertionError

        docker_runtimes = cuda_library

    facts = survey_host(NoDriver(Readings())).facts
    assert (facts.container_gpus, facts.container_toolkit) == ((), None)
    assert facts.known("container_gpus")
    assert not facts.known("forward_compat")


@pytest.mark.parametrize(
    ("toolkit", "runtimes", "version", "ways"),
    [
        (ToolkitReading(), ("runc",), None, ()),
        (ToolkitReading(), None, None, "not known"),
        (ToolkitReading(cdi=True), None, None, ("cdi",)),
        (
            ToolkitReading(program="nvidia-ctk", version="1.17.8"),
            ("nvidia", "runc"),
            "1.17.8",
            ("nvidia-runtime",),
        ),
        (ToolkitReading(program="nvidia-ctk", cdi=True), ("nvidia",), "not known", ("cdi", "nvidia-runtime")),
    ],
)
def test_how_containers_get_gpus(
    toolkit: ToolkitReading, runtimes: tuple[str, ...] | None, version: str | None, ways: object
) -> None:
    found = survey(nvml=NVML, container_toolkit=toolkit, docker_runtimes=runtimes)
    facts = found.facts
    assert (facts.container_toolkit if facts.known("container_toolkit") else "not known") == version
    assert (facts.container_gpus if facts.known("container_gpus") else "not known") == ways
    sighted = [one.value for one in found.sightings if one.fact == "container_toolkit"]
    assert sighted == ([toolkit.version] if toolkit.program else [])


def test_what_is_free_on_disks_does_not_make_a_survey_new() -> None:
    disk = Disk(mount="/", device="/dev/nvme0n1p1", file_system="ext4", size_bytes=2**41, free_bytes=2**30)
    one, other = survey(disks=(disk,)), survey(disks=(disk.model_copy(update={"free_bytes": 1}),))
    assert one != other
    assert one.lasting() == other.lasting()
    assert one.lasting() != survey(nvml=NVML, disks=(disk,)).lasting()
    assert dict(survey_rows(one))["disks"] == "/: ext4 on /dev/nvme0n1p1, 2.0 TiB, 1.0 GiB free"
    assert dict(survey_rows(survey(disks=(Disk(mount="/x", rotational=True),))))["disks"] == snapshot(
        "/x: file system not known, rotational, says the kernel"
    )


TORCH = {"torch": "2.9.0", "nvidia-cuda-runtime-cu12": "12.8.90"}


@pytest.mark.parametrize(
    ("torch", "packages", "cuda", "twice"),
    [
        (TorchReading(version="2.9.0+cu128", cuda="12.8"), TORCH, "12.8", False),
        (TorchReading(version="2.9.0+cu126", cuda="12.6"), TORCH, "12.6", True),
        (TorchReading(version="2.9.0+cpu"), TORCH, None, True),
        (TorchReading(version="2.9.0+cpu"), {"torch": "2.9.0"}, None, False),
        (TorchReading(version="2.9.0+cu128", cuda="12.8"), {"torch": "2.9.0"}, "12.8", False),
        (TorchReading(fault="KeyError: 'cuda'"), TORCH, "12.8", False),
        (TorchReading(fault="KeyError: 'cuda'"), {"torch": "2.9.0"}, "not known", False),
    ],
)
def test_torchs_own_word_on_its_cuda_counts(
    torch: TorchReading, packages: dict[str, str], cuda: str | None, twice: bool
) -> None:
    request = CompatibilityRequest(engine=EngineKind.LLAMA_CPP, packages=packages)
    completed = complete(request, survey(nvml=NVML).model_copy(update={"torch": torch}))
    assert (completed.facts.cuda_build if completed.facts.known("cuda_build") else "not known") == cuda
    assert ("cuda_build" in disagreements(completed.sightings)) is twice
    findings = {finding.rule: finding.message for finding in judge(completed).findings}
    assert ("HOST-BUILD-TWICE" in findings) is twice
    if cuda == "12.6":
        assert findings["HOST-BUILD-TWICE"] == snapshot(
            "two sources disagree on the CUDA of the environment: torch.version.cuda says 12.6, package list says 12.8; the judgement goes by torch itself"
        )


@pytest.mark.parametrize(
    ("packages", "engine"),
    [
        ({"vllm": "0.32.0", "transformers": "5.17.0"}, "vllm"),
        ({"transformers": "5.17.0"}, "transformers"),
        ({"xllamacpp": "1"}, "llama.cpp"),
        ({"vllm": "1", "sglang": "1"}, None),
        ({"numpy": "2.3.1"}, None),
    ],
)
def test_the_engine_that_packages_hold(packages: dict[str, str], engine: str | None) -> None:
    assert engine_of(packages, load_tables()) == engine


@pytest.mark.parametrize(
    ("packages", "cuda"),
    [
        ({}, None),
        ({"numpy": "2.3.1"}, None),
        ({"torch": "2.6.0+cpu"}, None),
        ({"torch": "2.6.0+cu124", "nvidia-cuda-runtime-cu12": "12.4.127"}, "12.4"),
        ({"nvidia-cuda-runtime-cu12": "12.8.90"}, "12.8"),
        ({"nvidia-cuda-runtime": "13.0.96", "nvidia-cublas": "13.1.0.3"}, "13.0"),
        ({"cuda-toolkit": "13.2.2"}, "13.2"),
    ],
)
def test_the_lock_says_which_cuda_it_was_built_for(packages: dict[str, str], cuda: str | None) -> None:
    assert cuda_build_of(packages) == cuda


def test_the_request_completes_the_facts() -> None:
    request = CompatibilityRequest(
        engine=EngineKind.LLAMA_CPP,
        engine_version="1.0",
        packages={"Nvidia_CUDA_Runtime_cu12": "12.8.90"},
        dtype="bfloat16",
        target=Target.DOCKER,
        gpus=1,
        measurements=(Measurement(kind="import", passed=True, evidence="imported"),),
    )
    facts = complete(request, survey(nvml=NVML)).facts
    assert (facts.engine, facts.cuda_build, facts.dtype, facts.engine_version) == (
        "llama.cpp",
        "12.8",
        "bfloat16",
        "1.0",
    )
    assert not facts.known("family")
    assert (facts.target, facts.gpus_wanted) == ("docker", 1)
    assert complete(request.model_copy(update={"cuda_build": "12.6"}), survey()).facts.cuda_build == "12.6"


def test_report_of_a_gpu_host() -> None:
    found = survey(
        nvml=NVML,
        kernel_driver=KERNEL,
        nvidia_smi=SmiReading(driver="570.124.06", cuda_driver="12.8", gpus=1),
    )
    facts = Facts(
        **{**found.facts.model_dump(), "engine": "llama.cpp", "packages": {"a|b": "1"}, "cuda_build": "12.9"}
    )
    result = judge(found.model_copy(update={"facts": facts}))
    assert headline(result) == snapshot("H200, driver 570.124.06, CUDA 12.9 build: warn")
    assert numbers(result)["findings_warn"].value == 1
    assert "memory" not in numbers(result)
    assert answer(result)["findings"][0].keys() == {
        "rule",
        "severity",
        "precedence",
        "message",
        "fix",
        "sources",
        "contradicted_by",
    }
    text = markdown(result)
    assert "| GPUs | NVIDIA H200 (9.0) |" in text
    assert "| driver | kernel module | 570.124.06 |" in text
    assert "**warn** `DRV-MINOR-12` (P1)" in text
    assert json.loads(result.model_dump_json())["facts"].keys() == facts.model_fields_set


def test_headlines() -> None:
    two = Facts(driver="580.1", gpus=(GPU, GPU), cuda_build=None)
    assert headline(judge(Survey(facts=two))) == "2 x H200, driver 580.1, no CUDA build: pass"
    assert headline(judge(Survey(facts=Facts()))) == "GPUs not known, driver none, no CUDA build: unknown"
    alone = Facts(driver=None, gpus=(), cuda_build=None, engine="vllm")
    assert headline(judge(Survey(facts=alone))) == "CPU only: vllm needs a GPU, and this host has none"
    assert "None." in markdown(judge(Survey(facts=Facts(**CPU_ONLY))))


CPU_ONLY: dict[str, None] = dict.fromkeys(
    name
    for name in Facts.model_fields
    if name not in ("distribution", "kernel", "cpu", "cpu_count", "memory_bytes")
)


def test_null_is_looked_for_and_not_there() -> None:
    result = judge(Survey(facts=Facts(**CPU_ONLY)))
    assert (result.verdict.value, result.findings) == ("pass", ())
