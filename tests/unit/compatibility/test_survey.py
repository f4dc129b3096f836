"""A survey asks every source and keeps who said what; without a GPU that is an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inline_snapshot import snapshot
from recorded_host import Readings, RecordedHost

from tasks.compatibility.apply import survey_host
from tasks.compatibility.models import (
    CompatibilityRequest,
    KernelReading,
    Measurement,
    NvmlReading,
    SmiReading,
    Survey,
)
from tasks.compatibility.plan import facts_of, judge
from tasks.compatibility.report import answer, headline, markdown, numbers
from tasks.compatibility.subject import cuda_build_of, disagreements
from tasks.core.facts import Facts, Gpu
from tasks.core.spec import EngineKind

GPU = Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=150_754_820_096, uuid="GPU-1")
NVML = NvmlReading(available=True, driver="570.124.06", cuda_driver="12.8", gpus=(GPU,))
KERNEL = KernelReading(driver="570.124.06", gpus=(Gpu(name="NVIDIA H200", uuid="GPU-1"),))
BROKEN = NvmlReading(fault="NVML: RM has detected an NVML/RM version mismatch.")


def survey(**readings: object) -> Survey:
    return survey_host(RecordedHost(Readings.model_validate(readings)))


def test_recorded_hosts_give_the_recorded_answers(repository: Path) -> None:
    found = survey_host(RecordedHost.load(repository / "tests/golden/hosts/debian-12-cpu.json"))
    request = CompatibilityRequest(engine=EngineKind.LLAMA_CPP, packages={"xllamacpp": "2026.10.11549"})
    result = judge(found.model_copy(update={"facts": facts_of(request, found)}))
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


def test_nvidia_smi_without_driver_is_no_fault() -> None:
    found = survey(nvidia_smi=SmiReading(fault="nvidia-smi: couldn't communicate with the NVIDIA driver"))
    assert (found.facts.driver, found.facts.gpus, found.fault) == (None, (), None)


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
        measurements=(Measurement(kind="import", passed=True, evidence="imported"),),
    )
    facts = facts_of(request, survey(nvml=NVML))
    assert (facts.engine, facts.cuda_build, facts.dtype, facts.engine_version) == (
        "llama.cpp",
        "12.8",
        "bfloat16",
        "1.0",
    )
    assert not facts.known("family")
    assert facts_of(request.model_copy(update={"cuda_build": "12.6"}), survey()).cuda_build == "12.6"


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
    assert headline(judge(Survey(facts=alone))) == "CPU only, 1 finding"
    assert "None." in markdown(judge(Survey(facts=Facts(**CPU_ONLY))))


CPU_ONLY: dict[str, None] = dict.fromkeys(
    name
    for name in Facts.model_fields
    if name not in ("distribution", "kernel", "cpu", "cpu_count", "memory_bytes")
)


def test_null_is_looked_for_and_not_there() -> None:
    result = judge(Survey(facts=Facts(**CPU_ONLY)))
    assert (result.verdict.value, result.findings) == ("pass", ())
