"""NVML's faults in words. What a host answers that has no driver is asked of the real library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pynvml
import pytest

from blocks.host.nvml import gpus_in_use, nvml_session, read_nvml
from tasks.compatibility.models import NvmlReading


@dataclass
class Memory:
    total: int


class FaultyDriver:
    """The library's functions on a host with two GPUs; `answers` may hold an error's number for any of them."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": "570.124.06",
            "nvmlSystemGetCudaDriverVersion_v2": 12080,
            "nvmlSystemGetCudaDriverVersion": 12080,
            "nvmlDeviceGetCount": 2,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetName": "NVIDIA GB10",
            "nvmlDeviceGetCudaComputeCapability": (12, 1),
            "nvmlDeviceGetMemoryInfo": Memory(1024),
            "nvmlDeviceGetUUID": "GPU-1",
        } | {name: pynvml.NVMLError(value) for name, value in answers.items()}
        self.shut_down = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FaultyDriver:
        for name in self.answers:
            monkeypatch.setattr(pynvml, name, lambda *_, name=name: self._answer(name))
        return self

    def _answer(self, name: str) -> Any:
        self.shut_down += name == "nvmlShutdown"
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_gpus_in_use_are_numbered_as_nvml_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is lost keeps its number, and the other its own."""
    FaultyDriver().install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def handle(index: int) -> str:
        if index == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return "handle"

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", handle)
    assert [one.number for one in gpus_in_use(2)] == [1]
    assert gpus_in_use(0) == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpus_in_use(2) == ()


def test_this_host_answers_without_raising() -> None:
    reading = read_nvml()
    with nvml_session() as available:
        assert reading.available is available
    assert reading.available or reading == NvmlReading(fault=reading.fault)


def test_a_driver_without_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FaultyDriver().install(monkeypatch)
    reading = read_nvml()
    assert (reading.driver, reading.cuda_driver, len(reading.gpus)) == ("570.124.06", "12.8", 2)
    assert (reading.gpus[0].compute_capability, reading.gpus[0].memory_bytes) == ("12.1", 1024)
    assert reading.fault is None
    with nvml_session() as available:
        assert available
    assert driver.shut_down == 2


@pytest.mark.parametrize("number", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_no_driver_is_no_fault(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    FaultyDriver(nvmlInit=number).install(monkeypatch)
    assert read_nvml() == NvmlReading()


def test_a_driver_upgraded_under_running_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    FaultyDriver(nvmlInit=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH).install(monkeypatch)
    reading = read_nvml()
    assert not reading.available
    assert reading.fault == "NVML: RM has detected an NVML/RM version mismatch."


def test_a_lost_gpu_is_named_and_the_library_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FaultyDriver(nvmlDeviceGetHandleByIndex=pynvml.NVML_ERROR_GPU_IS_LOST).install(monkeypatch)
    reading = read_nvml()
    assert reading.fault == "NVML: GPU 0: GPU is lost; NVML: GPU 1: GPU is lost"
    assert (reading.driver, reading.gpus, driver.shut_down) == ("570.124.06", (), 1)


def test_what_a_gpu_does_not_offer_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    FaultyDriver(
        nvmlDeviceGetMemoryInfo=pynvml.NVML_ERROR_NOT_SUPPORTED,
        nvmlDeviceGetCudaComputeCapability=pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        nvmlDeviceGetUUID=pynvml.NVML_ERROR_NO_PERMISSION,
    ).install(monkeypatch)
    gpu = read_nvml().gpus[0]
    assert (gpu.memory_bytes, gpu.compute_capability, gpu.uuid) == (None, None, None)


def test_an_old_library_knows_only_the_first_cuda_call(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    FaultyDriver(nvmlSystemGetCudaDriverVersion_v2=missing).install(monkeypatch)
    assert read_nvml().cuda_driver == "12.8"
    FaultyDriver(nvmlSystemGetCudaDriverVersion_v2=missing, nvmlSystemGetCudaDriverVersion=missing).install(
        monkeypatch
    )
    assert (read_nvml().cuda_driver, read_nvml().fault) == (None, None)


def test_a_version_that_is_none_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FaultyDriver()
    driver.answers |= {"nvmlSystemGetDriverVersion": "r580_00 (internal)"}
    driver.install(monkeypatch)
    reading = read_nvml()
    assert (reading.available, reading.driver, reading.fault) == (True, None, None)


@dataclass
class Feature:
    featureState: int  # noqa: N815


@dataclass
class Features:
    isGridLicenseSupported: int  # noqa: N815
    licensableFeaturesCount: int = 1  # noqa: N815
    gridLicensableFeatures: tuple[Feature, ...] = (Feature(0),)  # noqa: N815


def answering(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """A driver without fault that also answers these."""
    driver = FaultyDriver()
    driver.answers |= {"nvmlDeviceGetCount": 1, **answers}
    driver.install(monkeypatch)


def test_a_mig_instance_is_not_the_whole_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"parent": None, 0: 18, 1: 35}
    answering(
        monkeypatch,
        nvmlDeviceGetHandleByIndex="parent",
        nvmlDeviceGetMigMode=[1, 1],
        nvmlDeviceGetMaxMigDeviceCount=7,
    )

    def instance(parent: str, index: int) -> int:
        if index not in sizes:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return index

    def memory(handle: Any) -> Memory:
        size = sizes[handle]
        if size is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)
        return Memory(size)

    def name(handle: Any) -> str:
        return "NVIDIA H200" if handle == "parent" else f"NVIDIA H200 MIG {handle + 1}g.{sizes[handle]}gb"

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", instance)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", memory)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", name)
    (gpu,) = read_nvml().gpus
    assert (gpu.name, gpu.mig, gpu.memory_bytes) == ("NVIDIA H200", ("1g.18gb", "2g.35gb"), 35)


def test_the_driver_model_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, nvmlDeviceGetCurrentDriverModel=pynvml.NVML_DRIVER_WDM)
    assert read_nvml().gpus[0].driver_model == "TCC"


def test_mig_without_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, nvmlDeviceGetMigMode=[1, 1], nvmlDeviceGetMaxMigDeviceCount=0)
    assert read_nvml().gpus[0].mig == ()
    answering(monkeypatch, nvmlDeviceGetMigMode=[0, 1])
    assert read_nvml().gpus[0].mig is None


@pytest.mark.parametrize(
    ("mode", "features", "virtual", "licensed"),
    [
        (pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE, Features(0), None, None),
        (pynvml.NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH, Features(1), "passthrough", None),
        (pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU, Features(0), "vgpu", None),
        (pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU, Features(1), "vgpu", False),
        (pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU, Features(1, 1, (Feature(1),)), "vgpu", True),
    ],
)
def test_virtual_gpus_and_their_licence(
    mode: int, features: Features, virtual: str | None, licensed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, nvmlDeviceGetVirtualizationMode=mode, nvmlDeviceGetGridLicensableFeatures=features)
    (gpu,) = read_nvml().gpus
    assert (gpu.virtual, gpu.licensed) == (virtual, licensed)


@pytest.mark.parametrize(
    ("state", "joined"),
    [
        (pynvml.NVML_GPU_FABRIC_STATE_NOT_SUPPORTED, None),
        (pynvml.NVML_GPU_FABRIC_STATE_NOT_STARTED, False),
        (pynvml.NVML_GPU_FABRIC_STATE_IN_PROGRESS, False),
        (pynvml.NVML_GPU_FABRIC_STATE_COMPLETED, True),
    ],
)
def test_whether_gpus_joined_the_fabric(
    state: int, joined: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch)

    def fill(handle: str, info: Any) -> None:
        info._obj.state = state

    monkeypatch.setattr(pynvml, "nvmlDeviceGetGpuFabricInfoV", fill)
    assert read_nvml().fabric is joined
