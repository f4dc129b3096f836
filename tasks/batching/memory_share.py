"""The share of the GPUs' memory that an engine takes at its start, corrected after what it reports and uses. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.batching.models import Run
from tasks.engines.out_of_memory import free_share, wants_a_larger_share

_MARGIN = 0.005


def smaller_share(share: float, runs: Sequence[Run], limit_bytes: int) -> float | None:
    """The share to let the engine take instead of `share`; None if less would not help.

    Less helps in two cases: other processes use a part of that memory, and the engine reports how much is free; or
    the engine uses more than it was told to, and so more than `limit_bytes`.
    """
    said = [f"{fault.what}\n{fault.log_tail or ''}" for run in runs if (fault := run.fault) is not None]
    if any(wants_a_larger_share(text) for text in said):
        return None
    free = [found for text in said if (found := free_share(text)) is not None]
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    held = [share * limit_bytes / peak for peak in peaks if peak > limit_bytes]
    less = math.floor((min([*free, *held], default=1.0) - _MARGIN) * 100) / 100
    return less if 0 < less < share else None
