"""Which GPUs an engine is given."""

from __future__ import annotations

import pytest

from tasks.core.facts import Gpu
from tasks.core.gpus import HostGpu, choose_gpus, visible_only

# What CUDA counts first is the fastest: the 4090, which has half the memory of the A6000.
FOUND = tuple(
    HostGpu(index, Gpu(name=name, compute_capability=capability, memory_bytes=size, uuid=f"GPU-{name}"))
    for index, (name, capability, size) in enumerate(
        [("4090", "8.9", 24), ("GB10", "12.1", None), ("A6000", "8.6", 48), ("3060", "8.6", 12)]
    )
)


@pytest.mark.parametrize(
    ("count", "visible", "chosen"),
    [
        (0, None, []),
        (1, None, [2]),
        (2, None, [2, 0]),
        (9, None, [2, 0, 3, 1]),
        (1, "0,3", [0]),
        (2, "3, 0", [0, 3]),
        (2, "GPU-3060,GPU-A6", [2, 3]),
        (2, "3,7,2", [3]),
        (2, "3,-1,2", [3]),
        (2, "", []),
        (2, "-1", []),
    ],
)
def test_the_most_memory_of_what_may_be_seen(count: int, visible: str | None, chosen: list[int]) -> None:
    assert [one.number for one in choose_gpus(FOUND, count, visible)] == chosen


def test_a_process_sees_what_it_was_given_by_the_numbers_of_nvml() -> None:
    assert visible_only((2, 0)) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "2,0"}
    assert visible_only(()) == {}
