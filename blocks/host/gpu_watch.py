"""What processes use of GPUs while a block runs, by NVML: peak memory, and how busy the SMs were."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pynvml

from blocks.host.nvml import bytes_since, held_bytes, nvml_session
from tasks.core.errors import EngineError

PERIOD_S = 0.05
"""NVML keeps no high-water mark per process, so it is polled."""


@dataclass
class GpuUse:
    """Complete when the block is left.

    `peak_bytes` is the most that the processes held on all GPUs at once. `sm_activity` is the share of busy
    SMs, 0 to 1, over the whole block: the mean over the GPUs on which the processes held memory, including
    other processes' work. It is None if NVML has no GPM counters (before Hopper, or not permitted). The "GPU
    utilisation" that every GPU reports is only the share of time with any kernel running, and says nothing
    about the SMs.
    """

    peak_bytes: int = 0
    sm_activity: float | None = None


@contextlib.contextmanager
def watch_gpus(
    pids: Callable[[], Collection[int]],
    *,
    before: Mapping[int, int] | None = None,
    period_s: float = PERIOD_S,
) -> Iterator[GpuUse]:
    """Watch these processes' use of this host's GPUs; nothing is seen without a driver.

    `before` is as in `blocks.host.nvml.gpu_bytes_of`.
    Raises `EngineError` if NVML stops answering meanwhile.
    """
    use = GpuUse()
    with nvml_session() as available:
        if not available:
            yield use
            return
        watch = _Watch(pids, use, before or {})
        stop = threading.Event()

        def look_again() -> None:
            with contextlib.suppress(pynvml.NVMLError):  # the last poll says what is wrong
                while not stop.wait(period_s):
                    watch.look()

        thread = threading.Thread(target=look_again, name="slipway-gpus", daemon=True)
        with watch.counters():
            thread.start()
            try:
                yield use
            finally:
                stop.set()
                thread.join()
            try:
                watch.look()
            except pynvml.NVMLError as error:
                raise EngineError(f"NVML has stopped answering: {error}", fix="run nvidia-smi") from error
            watch.read_counters()


class _Watch:
    def __init__(self, pids: Callable[[], Collection[int]], use: GpuUse, before: Mapping[int, int]) -> None:
        self._pids = pids
        self._use = use
        self._before = before
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        self._used: set[int] = set()
        self._samples: dict[int, Sequence[Any]] = {}

    def look(self) -> None:
        """Raises `pynvml.NVMLError`."""
        pids = self._pids()
        held = {index: held_bytes(handle, pids) for index, handle in enumerate(self._handles)}
        if not any(held.values()):
            held = {index: bytes_since(self._handles[index], used) for index, used in self._before.items()}
        self._used |= {index for index, size in held.items() if size}
        self._use.peak_bytes = max(self._use.peak_bytes, sum(held.values()))

    @contextlib.contextmanager
    def counters(self) -> Iterator[None]:
        """Two samples for each GPU that has the counters, the first of them taken."""
        with contextlib.ExitStack() as stack:
            self._samples = {
                index: [stack.enter_context(_sample()) for _ in range(2)]
                for index, handle in enumerate(self._handles)
                if _has_counters(handle)
            }
            refused = [index for index, (first, _) in self._samples.items() if not self._take(index, first)]
            for index in refused:
                del self._samples[index]
            yield

    def _take(self, index: int, sample: Any) -> bool:
        """Whether NVML took the sample: without privileges it may refuse."""
        try:
            pynvml.nvmlGpmSampleGet(self._handles[index], sample)
        except pynvml.NVMLError:
            return False
        return True

    def read_counters(self) -> None:
        """SM activity since the first samples, without GPUs for which NVML refuses, for example if samples
        are too close."""
        found = []
        for index in self._used & self._samples.keys():
            first, second = self._samples[index]
            if not self._take(index, second):
                continue
            with contextlib.suppress(pynvml.NVMLError):
                found.append(_sm_activity(first, second))
        self._use.sm_activity = fmean(found) if found else None


def _has_counters(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except pynvml.NVMLError:  # a driver without this function
        return False


@contextlib.contextmanager
def _sample() -> Iterator[Any]:
    sample = pynvml.nvmlGpmSampleAlloc()
    try:
        yield sample
    finally:
        pynvml.nvmlGpmSampleFree(sample)


def _sm_activity(first: Any, second: Any) -> float:
    """Raises `pynvml.NVMLError`. https://docs.nvidia.com/deploy/nvml-api/group__nvmlGpmFunctions.html"""
    asked = pynvml.c_nvmlGpmMetricsGet_t(
        version=pynvml.NVML_GPM_METRICS_GET_VERSION, numMetrics=1, sample1=first, sample2=second
    )
    asked.metrics[0].metricId = pynvml.NVML_GPM_METRIC_SM_UTIL
    (metric, *_) = pynvml.nvmlGpmMetricsGet(asked).metrics
    if metric.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(metric.nvmlReturn)
    return float(metric.value) / 100
