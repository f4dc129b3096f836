"""Which of a host's GPUs an engine gets. Pure.

Measurements and limits apply to these GPUs, so the engine must see no others: by default, llama.cpp spreads over all
visible GPUs, and CUDA numbers the fastest first, while a model needs the one with the most memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tasks.core.facts import Gpu

ORDER = "CUDA_DEVICE_ORDER"
VISIBLE = "CUDA_VISIBLE_DEVICES"


class HostGpu(NamedTuple):
    """A GPU and its number on the host, as NVML counts: in the order of the PCI bus."""

    number: int
    gpu: Gpu


def choose_gpus(found: Sequence[HostGpu], count: int, visible: str | None = None) -> tuple[HostGpu, ...]:
    """The `count` GPUs with the most memory, the largest first.

    `visible` is the `CUDA_VISIBLE_DEVICES` that was set for Slipway itself: numbers, assumed to be in the
    order of the PCI bus, or prefixes of UUIDs. Only these are chosen; as in CUDA, the first invalid entry
    ends the list.
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
    """The environment of a process on the host that is to see only these GPUs; all, if none is given.

    Numbers, not UUIDs: vLLM before 0.24 fails on those (vllm-project/vllm#13815).
    """
    return {ORDER: "PCI_BUS_ID", VISIBLE: ",".join(map(str, indices))} if indices else {}
