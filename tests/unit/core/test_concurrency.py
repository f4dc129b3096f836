"""Stages at the same time: one `no` stops the others, and a fault waits for them."""

from __future__ import annotations

import os
import signal as signals
import threading
from pathlib import Path
from typing import NoReturn

import pytest
from small_stage import Answer, Work, records, stage

from tasks.core.cancellation import begin, current
from tasks.core.concurrency import run_concurrently
from tasks.core.errors import ModelError
from tasks.core.stage import Outcome


def test_one_no_cancels_what_runs_at_the_same_time(slipway_home: Path) -> None:
    signal = begin()

    def waits() -> Outcome[Answer]:
        def until_cancelled() -> NoReturn:
            signal.wait()
            current().check()
            raise AssertionError("the signal did not reach the work")

        return stage(until_cancelled, inputs={"source": "waits"})

    outcomes = run_concurrently([lambda: stage(Work("corrupt")), waits], signal)
    assert outcomes[0] is not None
    assert outcomes[0].says_no
    assert outcomes[1] is None
    assert signal.reason == "staging says corrupt"
    assert sorted(record.outcome for record in records()) == ["cancelled", "corrupt"]


def test_a_fault_without_a_text_stops_the_others(slipway_home: Path) -> None:
    signal = begin()

    def waits() -> Outcome[Answer]:
        def until_cancelled() -> NoReturn:
            assert signal.wait(30), "the signal did not reach the work"
            current().check()
            raise AssertionError("the work was not cancelled")

        return stage(until_cancelled, inputs={"source": "waits"})

    def fails() -> NoReturn:
        raise MemoryError

    with pytest.raises(MemoryError):
        run_concurrently([fails, waits], signal)
    assert signal.reason == "MemoryError"


def test_an_interrupt_ends_what_runs_at_once(slipway_home: Path) -> None:
    """As Ctrl-C does: it reaches the main thread only, which must not wait for hours of copying."""
    signal, began = begin(), threading.Event()

    def works_for_hours() -> NoReturn:
        began.set()
        signal.wait(30)
        current().check()
        raise AssertionError("the signal did not reach the work")

    def interrupts() -> None:
        began.wait()
        os.kill(os.getpid(), signals.SIGINT)

    former = signals.signal(signals.SIGINT, signals.default_int_handler)  # background jobs ignore it
    try:
        threading.Thread(target=interrupts, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_concurrently([works_for_hours], signal)
    finally:
        signals.signal(signals.SIGINT, former)
    assert signal.reason == "interrupted"


def test_a_fault_is_raised_after_all_have_ended(slipway_home: Path) -> None:
    signal = begin()

    def fails() -> NoReturn:
        raise ModelError("no such model")

    def waits() -> Outcome[Answer]:
        signal.wait()
        current().check()
        raise AssertionError("not cancelled")

    with pytest.raises(ModelError, match="no such model"):
        run_concurrently([waits, fails], signal)
    assert signal.reason == "no such model"
