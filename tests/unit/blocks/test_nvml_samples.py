"""GPU samples from NVML: what it says is taken over, what it does not report is left out."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from blocks import nvml


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
