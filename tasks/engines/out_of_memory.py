"""Distinguish an engine that ran out of memory from one that died for another reason."""

from __future__ import annotations

import functools
import re

from tasks.core.spec_kinds import EngineKind
from tasks.engines.card import Memory, read_card

_WORDS = ("out of memory", "outofmemory", "failed to allocate", "bad_alloc", "cannot allocate memory")
"""Messages of allocators, which all engines use. An engine's own messages are on its card."""

_ERROR = re.compile(r"error|failed", re.IGNORECASE)
_KILLED = 128 + 9


def was_out_of_memory(status: int | None, log: str, *, kernel_kills: int | None = None) -> bool:
    """Whether a process that ended with `status`, with this end of its log, ran out of memory.

    The kernel's out-of-memory killer sends SIGKILL and writes nothing to the log. `kernel_kills` is how many
    processes it killed meanwhile: with none, another process sent the signal. None if that is not known, and
    then SIGKILL counts as the kernel's.
    """
    words = log.lower()
    return (status == _KILLED and kernel_kills != 0) or any(word in words for word in _errors())


def memory_error(log: str) -> str | None:
    """The last line of a log that is an error about memory, and not only a warning; None if there is none."""
    lines = (line.strip() for line in reversed(log.splitlines()))
    return next((line for line in lines if _ERROR.search(line) and was_out_of_memory(None, line)), None)


def wants_a_larger_share(log: str) -> bool:
    """Whether an engine that takes a share of the GPUs' memory at its start found that share too small.

    It says so if the weights leave no room for the cache of one sequence: less memory would not help.
    """
    words = log.lower()
    return any(word in words for memory in _memories() for word in memory.share_too_small)


def free_share(log: str) -> float | None:
    """The share of a GPU's memory that an engine found free, if it says that it was told to take more."""
    patterns = (memory.free_of_total for memory in _memories() if memory.free_of_total)
    found = [
        (float(free), float(total))
        for pattern in patterns
        for free, total in re.findall(pattern, log.lower())
    ]
    return min((free / total for free, total in found if total), default=None)


@functools.cache
def _memories() -> tuple[Memory, ...]:
    return tuple(read_card(kind).memory for kind in EngineKind)


@functools.cache
def _errors() -> tuple[str, ...]:
    own = (word for memory in _memories() for word in (*memory.errors, *memory.share_too_small))
    return (*_WORDS, *own)
