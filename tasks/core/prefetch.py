"""Whether to read a model's files into the page cache ahead of an engine. Pure."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

RESERVE_FRACTION = 0.1
"""Share of the available memory that stays free for the engine's own buffers."""


@dataclass
class Prefetched:
    """What a prefetch has done so far. `why_not` says why it did not read something; `ended` is set when it has
    finished."""

    read_bytes: int = 0
    seconds: float = 0.0
    why_not: str | None = None
    ended: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)


Prefetch = Callable[[Sequence[Path]], AbstractContextManager[Prefetched]]
"""Reads these files, or the files in these folders, during a `with` block, and ends with it. Never raises."""


@contextlib.contextmanager
def no_prefetch(paths: Sequence[Path]) -> Iterator[Prefetched]:
    """The prefetch that does nothing."""
    yield Prefetched()


def why_not(missing_bytes: int, available_bytes: int) -> str | None:
    """Why this much should not be read ahead: the last pages would evict the first. None if it fits."""
    room = int(available_bytes * (1 - RESERVE_FRACTION))
    if missing_bytes <= room:
        return None
    return (
        f"{missing_bytes / 1e9:.1f} GB do not fit into the {room / 1e9:.1f} GB of usable memory: "
        "the engine reads the files by itself"
    )
