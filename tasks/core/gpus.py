"""Which of a host's GPUs an engine is given. Pure.

What is predicted, measured and bounded holds for these GPUs, so the engine must see no others: left alone, llama.cpp
spreads over all that it sees, and CUDA counts the fastest first where memory is what a model needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tasks.core.facts import Gpu

ORDER = "CUDA_DEVICE_ORDER"
VISIBLE = "CUDA_VISIBLE_DEVICES"


class HostGpu(NamedTuple):
    """A GPU and its number on the host, by NVML: in the order of the PCI bus."""

    number: int
    gpu: Gpu


def choose_gpus(found: Sequence[HostGpu], count: int, visible: str | None = None) -> tuple[HostGpu, ...]:
    """The `count` GPUs with the most memory, the largest first.

    `visible` is a `CUDA_VISIBLE_DEVICES` that was set for Slipway itself: numbers, taken to be in the order of the
    PCI bus, or beginnings of UUIDs; no others are chosen, and as with CUDA, none after an entry that names none.
    """
    if visible is not None:
        found = _named(found, visible)
    ranked = sorted(found, key=lambda one: one.gpu.memory_bytes or 0, reverse=True)
    return tuple(ranked[:count])


def _named(found: Sequence[HostGpu], visible: str) -> list[HostGpu]:
    named: list[HostGpu] = []
    for entry in (word.strip() for word in visible.split(",")):
        one = next((one for one in found if _is_named(one, entry)), None)
        if one is None:
            break
        named.append(one)
    return named


def _is_named(one: HostGpu, entry: str) -> bool:
    if entry.isdecimal():
        return one.number == int(entry)
    return bool(entry) and (one.gpu.uuid or "").startswith(entry)


def visible_only(indices: Sequence[int]) -> Mapping[str, str]:
    """The environment of a process on the host that is to see these GPUs alone; all, where none is given.

    Numbers and no UUIDs: vLLM before 0.24 dies of those (vllm-project/vllm#13815).
    """
    return {ORDER: "PCI_BUS_ID", VISIBLE: ",".join(map(str, indices))} if indices else {}
