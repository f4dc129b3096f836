"""How an engine that ran out of memory is told from one that died of something else."""

from __future__ import annotations

import re

_TOO_SMALL_A_SHARE = (
    "no available memory for the cache blocks",
    "larger than the available kv cache memory",
    "larger than the maximum number of tokens that can be stored in kv cache",
    "not enough memory. please try to increase --mem-fraction-static",
)
"""vLLM's words (`vllm/v1/core/kv_cache_utils.py`, and those of its former engine) and SGLang's."""

_FREE = re.compile(r"free memory on device[^(]*\(([0-9.]+)/([0-9.]+) gib\)", re.IGNORECASE)
"""vLLM's words where others hold what it was told to take (`vllm/v1/worker/gpu_worker.py`)."""

_WORDS = (
    "out of memory",
    "outofmemory",
    "failed to allocate",
    "bad_alloc",
    "cannot allocate memory",
    "is less than desired gpu memory utilization",  # vLLM: others hold what it was told to take
    *_TOO_SMALL_A_SHARE,
)
_ERROR = re.compile(r"error|failed", re.IGNORECASE)
_KILLED = 128 + 9


def was_out_of_memory(status: int | None, log: str, *, kernel_kills: int | None = None) -> bool:
    """Whether a process that ended with `status`, with this end of its log, ran out of memory.

    The kernel's out-of-memory killer sends SIGKILL and leaves no word in the log. `kernel_kills` is how many
    processes it killed meanwhile: with none, somebody else sent the signal. None where that is not known, and
    then SIGKILL counts as the kernel's.
    """
    words = log.lower()
    return (status == _KILLED and kernel_kills != 0) or any(word in words for word in _WORDS)


def memory_error(log: str) -> str | None:
    """The last line of a log that is an error about memory; None where there is none. Warnings speak of it, too."""
    lines = (line.strip() for line in reversed(log.splitlines()))
    return next((line for line in lines if _ERROR.search(line) and was_out_of_memory(None, line)), None)


def wants_a_larger_share(log: str) -> bool:
    """Whether an engine that takes a share of the GPUs' memory at its start found that share too small.

    It says so where the weights leave no room for the cache of one sequence: less memory would not help.
    """
    words = log.lower()
    return any(word in words for word in _TOO_SMALL_A_SHARE)


def free_share(log: str) -> float | None:
    """The share of a GPU's memory that an engine found free, where it says that it was told to take more."""
    found = [(float(free), float(total)) for free, total in _FREE.findall(log)]
    return min((free / total for free, total in found if total), default=None)
