"""What is seen of GPUs while a block runs. NVML stands in: there may be no GPU here."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from blocks.host.gpu_watch import watch_gpus
from blocks.host.nvml import gpu_bytes_of, memory_unless_by_process
from tasks.core.errors import EngineError


class Gpus:
    """Two GPUs: processes' memory by pid on each; the first has GPM counters. `looked` is set by each look."""

    def __init__(self) -> None:
        self.held: list[dict[int, int | None]] = [{}, {}]
        self.looked = threading.Event()
        self.broken = False
        self.allocated = 0
        self.metric = (pynvml.NVML_SUCCESS, 62.5)

    def processes(self, index: int) -> list[Any]:
        if self.broken:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if index == 1:
            self.looked.set()
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.held[index].items()]

    def wait(self) -> None:
        """Until all GPUs were looked at, from now on."""
        self.looked.clear()
        assert self.looked.wait(10)
        self.looked.clear()  # a look may have been under way
        assert self.looked.wait(10)

    def allocate(self) -> Any:
        self.allocated += 1
        return ctypes.pointer(pynvml.struct_c_nvmlGpmSample_t())

    def free(self, _: Any) -> None:
        self.allocated -= 1

    def metrics(self, asked: Any) -> Any:
        assert (asked.numMetrics, asked.metrics[0].metricId) == (1, pynvml.NVML_GPM_METRIC_SM_UTIL)
        asked.metrics[0].nvmlReturn, asked.metrics[0].value = self.metric
        return asked


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    gpus = Gpus()
    answers: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetComputeRunningProcesses": gpus.processes,
        "nvmlGpmQueryDeviceSupport": lambda index: SimpleNamespace(isSupportedDevice=int(index == 0)),
        "nvmlGpmSampleAlloc": gpus.allocate,
        "nvmlGpmSampleFree": gpus.free,
        "nvmlGpmSampleGet": lambda _, sample: sample,
        "nvmlGpmMetricsGet": gpus.metrics,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    return gpus


def test_the_most_memory_between_two_looks_of_the_user_counts(gpus: Gpus) -> None:
    with watch_gpus(lambda: [7, 8], period_s=0.001) as use:
        gpus.held = [{7: 100, 99: 5000}, {8: 20, 7: None}]
        gpus.wait()
        gpus.held = [{7: 10}, {}]
        gpus.wait()
    assert use.peak_bytes == 120
    assert use.sm_activity == 0.625
    assert gpus.allocated == 0


def test_of_a_gpu_without_counters_and_of_others_gpus_nothing_is_said(gpus: Gpus) -> None:
    gpus.held = [{99: 5000}, {8: 20}]
    with watch_gpus(lambda: [8], period_s=60) as use:
        pass
    assert (use.peak_bytes, use.sm_activity) == (20, None)
    gpus.held, gpus.metric = [{8: 20}, {}], (pynvml.NVML_ERROR_UNKNOWN, 0.0)
    with watch_gpus(lambda: [8], period_s=60) as use:
        pass
    assert (use.peak_bytes, use.sm_activity) == (20, None)


def test_counters_that_are_not_permitted_are_left_out(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

    monkeypatch.setattr(pynvml, "nvmlGpmSampleGet", refuse)
    gpus.held = [{8: 20}, {}]
    with watch_gpus(lambda: [8], period_s=60) as use:
        pass
    assert (use.peak_bytes, use.sm_activity) == (20, None)
    assert gpus.allocated == 0


def test_where_processes_are_not_known_what_came_since_is_theirs(
    gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without the host's processes: NVML names other numbers, or ours without memory."""
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda index: SimpleNamespace(used=(900, 40)[index])
    )
    gpus.held = [{4711: 800}, {8: None}]
    with watch_gpus(lambda: [8], before={0: 100, 1: 50}, period_s=60) as use:
        pass
    assert (use.peak_bytes, use.sm_activity) == (800, 0.625)
    assert gpu_bytes_of([8], {0: 100, 1: 50}) == 800
    assert gpu_bytes_of([8]) == 0  # on the host it would have been named
    gpus.held = [{8: 20}, {}]
    assert gpu_bytes_of([8], {0: 100, 1: 50}) == 20
    assert memory_unless_by_process([0, 1]) == {}
    monkeypatch.setattr(Path, "readlink", lambda _: Path("pid:[4026532567]"))
    assert memory_unless_by_process([0, 1]) == {0: 900, 1: 40}


def test_a_gpu_that_is_lost_meanwhile_is_a_fault(gpus: Gpus) -> None:
    with (
        pytest.raises(EngineError, match="NVML has stopped answering: GPU is lost"),
        watch_gpus(lambda: [8], period_s=0.001),
    ):
        gpus.broken = True
    assert gpus.allocated == 0


def test_without_a_driver_nothing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with watch_gpus(lambda: [8]) as use:
        pass
    assert (use.peak_bytes, use.sm_activity) == (0, None)
