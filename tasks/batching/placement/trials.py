"""What was measured, by placement. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.batching.models import (
    Ask,
    Decision,
    Fit,
    Limits,
    PlacedRun,
    Placement,
    Run,
    SizeFigures,
    Space,
)
from tasks.batching.placement.memory import blocks, most_on_host
from tasks.batching.plan import REPEATS, doubt, next_step, summarise

_MEMORY = (Fit.OUT_OF_MEMORY, Fit.MEMORY)


@dataclass(frozen=True)
class Trial:
    """One placement: its runs by size, and what the search for its batch size wants next."""

    placement: Placement
    limits: Limits
    runs: Sequence[Run]
    sizes: Mapping[int, SizeFigures]
    step: Ask | Decision

    @property
    def sure(self) -> list[SizeFigures]:
        """Sizes that keep every bound, smallest first, those left out that were measured often and leave a doubt."""
        return [
            size
            for _, size in sorted(self.sizes.items())
            if size.fits and not (size.runs >= REPEATS and doubt(size, self.limits))
        ]

    @property
    def claim(self) -> float:
        """The most throughput that it is known for, tokens/s; 0 where nothing keeps the bounds."""
        return max((size.throughput for size in self.sure), default=0.0)

    @property
    def settled(self) -> bool:
        """Whether its own search has decided."""
        return isinstance(self.step, Decision)

    @property
    def want_of_memory(self) -> bool:
        """Whether memory, and nothing else, is why no size fits."""
        return all(size.fit in _MEMORY for size in self.sizes.values())

    @property
    def grows(self) -> bool:
        """Whether its search still looks for more throughput; for a smaller size only the answer's does."""
        if not isinstance(self.step, Ask) or self.step.runs > 1:
            return False
        fitting = [size.batch for size in self.sure]
        return not fitting or self.step.batch > min(fitting) or self.step.batch in self.sizes


def sort_trials(history: Sequence[PlacedRun], space: Space) -> list[Trial]:
    """One trial for each placement, in the order in which they were first tried."""
    placements = list(dict.fromkeys(placed.placement for placed in history))
    return [
        _sum_up(placement, [placed.run for placed in history if placed.placement == placement], space)
        for placement in placements
    ]


def limits_of(placement: Placement, space: Space) -> Limits:
    """The bounds of a placement: memory of the GPUs that it uses, and no more sequences than the host has room for.

    The host's memory is not measured: of what is mapped from a file it cannot be told whether it is needed.
    """
    if space.knob == "offload":
        host = space.devices.host_bytes * space.memory_fraction
        most = most_on_host(space.footprint, placement.gpu_layers, host)
        most_batch = max(1, math.floor(min(most, float(space.limits.max_batch))))
        return space.limits.model_copy(update={"max_batch": most_batch})
    gpus = space.devices.gpu_bytes
    share = sum(gpus[: placement.gpus]) / sum(gpus)
    bounds: dict[str, int] = {"memory_bytes": int(space.limits.memory_bytes * share)}
    if tokens := placement.batched_tokens or space.default_tokens:
        # vLLM does not start with more sequences than tokens a step, as each of them takes one.
        bounds["max_batch"] = min(space.limits.max_batch, tokens)
    return space.limits.model_copy(update=bounds)


def _sum_up(placement: Placement, runs: Sequence[Run], space: Space) -> Trial:
    limits = limits_of(placement, space)
    each = blocks(space.footprint, placement.gpu_layers) * space.footprint.kv_bytes
    return Trial(
        placement=placement,
        limits=limits,
        runs=runs,
        sizes=summarise(runs, limits),
        step=next_step(runs, limits, each_bytes=float(each)),
    )
