"""Each way of going wrong has a kind of its own, with its evidence."""

from __future__ import annotations

import pytest

from tasks.core.errors import (
    EngineDiedError,
    EngineError,
    EngineHungError,
    EngineSlowError,
    EngineStartError,
)
from tasks.engines.failures import Failure, FailureKind, failure_of, failure_of_exit, signal_of
from tasks.engines.out_of_memory import free_share, memory_error, wants_a_larger_share

TAKEN = (
    "ValueError: Free memory on device cuda:0 (3.27/15.98 GiB) on startup is less than desired GPU memory utilization "
    "(0.9, 14.39 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
TOO_SMALL = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing."


def died(
    status: int, *, ready: bool = True, kills: int | None = 0, log: str | None = None
) -> EngineDiedError:
    return EngineDiedError("it died", status=status, ready=ready, kernel_kills=kills, detail=log)


@pytest.mark.parametrize(
    ("error", "kind", "status", "signal"),
    [
        (died(3), FailureKind.CRASHED, 3, None),
        (died(128 + 11), FailureKind.CRASHED, None, "SIGSEGV"),
        (died(128 + 11, ready=False), FailureKind.NOT_STARTED, None, "SIGSEGV"),
        (died(1, ready=False), FailureKind.NOT_STARTED, 1, None),
        # SIGKILL is the kernel's when it says that it killed somebody, or does not say.
        (died(128 + 9, kills=1), FailureKind.OUT_OF_MEMORY, None, "SIGKILL"),
        (died(128 + 9, kills=None), FailureKind.OUT_OF_MEMORY, None, "SIGKILL"),
        (died(128 + 9, kills=0), FailureKind.CRASHED, None, "SIGKILL"),
        (died(1, log="std::bad_alloc"), FailureKind.OUT_OF_MEMORY, 1, None),
        (died(1, ready=False, log="CUDA error: out of memory"), FailureKind.OUT_OF_MEMORY, 1, None),
        (died(1, ready=False, log=TAKEN), FailureKind.OUT_OF_MEMORY, 1, None),
        (died(1, ready=False, log=TOO_SMALL), FailureKind.OUT_OF_MEMORY, 1, None),
        # A kill elsewhere on the host is no reason to call an ordinary end out of memory.
        (died(1, kills=5), FailureKind.CRASHED, 1, None),
        (EngineStartError("x"), FailureKind.NOT_STARTED, None, None),
        (EngineHungError("x"), FailureKind.HUNG, None, None),
        (EngineSlowError("x"), FailureKind.SLOW, None, None),
        (EngineError("x"), FailureKind.GARBAGE, None, None),
        # Some engines survive it and say so in their answer.
        (EngineError("answered 500: CUDA out of memory"), FailureKind.OUT_OF_MEMORY, None, None),
    ],
)
def test_errors_have_kinds(
    error: EngineError, kind: FailureKind, status: int | None, signal: str | None
) -> None:
    found = failure_of(error, log_tail="the log")
    assert (found.kind, found.exit_status, found.signal) == (kind, status, signal)
    assert found.what == error.what
    assert found.log_tail == (error.detail or "the log")


def test_the_errors_own_lines_come_first() -> None:
    assert failure_of(died(3, log="its own"), log_tail="the log").log_tail == "its own"
    assert failure_of(died(3), log_tail="the log").log_tail == "the log"
    assert failure_of(died(3), log_tail="").log_tail is None


@pytest.mark.parametrize(
    ("status", "log", "kills", "line"),
    [
        (1, "", 0, "crashed: exit status 1"),
        (1, "a\nKeyError: 'x'\n", 0, "crashed: exit status 1: KeyError: 'x'"),
        (134, "", 0, "crashed: killed by SIGABRT"),
        (127, "cannot run ./x: Permission denied", 0, "did not start: exit status 127: cannot run ./x: "),
        (1, "torch.cuda.OutOfMemoryError: CUDA …", 0, "out of memory: exit status 1: torch.cuda.OutOfMemor"),
        (137, "", 1, "out of memory: killed by SIGKILL"),
        (137, "", 0, "crashed: killed by SIGKILL"),
    ],
)
def test_ends_of_commands_have_kinds(status: int, log: str, kills: int, line: str) -> None:
    assert failure_of_exit(status, log, kernel_kills=kills).line.startswith(line)


def test_only_statuses_of_signals_name_one() -> None:
    assert [signal_of(status) for status in (None, 0, 1, 128, 129, 128 + 64, 255)] == [
        *[None] * 4,
        "SIGHUP",
        "SIGRTMAX",
        None,
    ]


def test_a_line_does_not_repeat_itself() -> None:
    assert Failure(kind=FailureKind.OUT_OF_MEMORY, what="out of memory").line == "out of memory"


def test_an_error_about_memory_is_found_and_a_warning_is_none() -> None:
    assert memory_error(f"ERROR {TAKEN}\nTraceback\nRuntimeError: it failed") == f"ERROR {TAKEN}"
    assert memory_error("WARNING long prompts may run out of memory\nRuntimeError: it failed") is None


def test_an_engine_that_takes_a_share_says_whether_less_or_more_would_help() -> None:
    assert free_share(TAKEN) == pytest.approx(3.27 / 15.98)
    assert free_share(f"{TAKEN}\n{TAKEN.replace('3.27', '2.5')}") == pytest.approx(2.5 / 15.98)
    assert free_share(TOO_SMALL) is None
    assert wants_a_larger_share(TOO_SMALL)
    assert not wants_a_larger_share(TAKEN)
