"""GPU samples from NVML: what it says is taken over, what it does not report is left out."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from blocks.host import nvml


def test_without_a_driver_there_are_no_gpus() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert nvml.sample_gpus() == ()
    else:
        pynvml.nvmlShutdown()
        assert len(nvml.sample_gpus()) >= 1


def test_a_gpu_as_nvml_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passively cooled GPU (no fan) that is too hot. NVML stands in: there may be no GPU here."""

    def no_fan(_: object) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    answers = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetFanSpeed": no_fan,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=30, total=120),
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _: (
            pynvml.nvmlClocksEventReasonSwThermalSlowdown | pynvml.nvmlClocksEventReasonGpuIdle
        ),
        "nvmlDeviceGetName": lambda _: "NVIDIA H200",
        "nvmlDeviceGetUUID": lambda _: "GPU-1",
        "nvmlDeviceGetTemperature": lambda _, sensor: 91,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    (gpu,) = nvml.sample_gpus()
    assert (gpu.temperature_c, gpu.fan, gpu.memory_used) == (91, None, 0.25)
    assert gpu.slowed == ("too hot (driver)",)


def test_a_gpu_that_is_lost_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two GPUs one fell off the bus: NVML goes on counting it. NVML stands in: no GPU here can be lost."""

    def lost(index: int, *_: object) -> int:
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return 40

    for name in ("nvmlInit", "nvmlShutdown"):
        monkeypatch.setattr(pynvml, name, lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda _: "NVIDIA H200")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda index: f"GPU-{index}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda _: SimpleNamespace(used=1, total=2))
    for name in (
        "nvmlDeviceGetFanSpeed",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons",
    ):
        monkeypatch.setattr(pynvml, name, lost)
    assert [gpu.uuid for gpu in nvml.sample_gpus()] == ["GPU-0"]
