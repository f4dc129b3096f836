"""How an engine that ran out of memory is told from one that died of something else."""

from __future__ import annotations

_WORDS = ("out of memory", "outofmemory", "failed to allocate", "bad_alloc", "cannot allocate memory")
_KILLED = 128 + 9


def was_out_of_memory(status: int | None, log: str, *, kernel_kills: int | None = None) -> bool:
    """Whether a process that ended with `status`, with this end of its log, ran out of memory.

    The kernel's out-of-memory killer sends SIGKILL and leaves no word in the log. `kernel_kills` is how many
    processes it killed meanwhile: with none, somebody else sent the signal. None where that is not known, and
    then SIGKILL counts as the kernel's.
    """
    words = log.lower()
    return (status == _KILLED and kernel_kills != 0) or any(word in words for word in _WORDS)
