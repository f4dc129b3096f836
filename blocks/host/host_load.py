"""How busy others keep this host's CPUs: whatever they use is missing from a measurement."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import psutil

R = TypeVar("R")
_LOOK_S = 0.5


class Seconds(NamedTuple):
    """CPU time since some moment in the past, s: of the whole host, of this process and its children, and wall time
    times the number of CPUs."""

    busy: float
    own: float
    available: float


class ForeignLoad:
    """Measures the share of all CPUs that other processes used during some work.

    Time that a hypervisor took away counts too. So do other Slipway services on this host.
    """

    def __init__(self, read: Callable[[], Seconds] | None = None) -> None:
        self._read = read or read_seconds
        self.share: float | None = None
        """From 0 to 1, for the last work; None before the first measurement."""

    def over(self, work: Callable[[], R]) -> R:
        """Do the work, and measure the host's other load while it runs."""
        before = self._read()
        try:
            return work()
        finally:
            self.share = foreign_share(before, self._read())

    def now(self) -> float:
        """The current share, measured for half a second."""
        before = self._read()
        time.sleep(_LOOK_S)
        return foreign_share(before, self._read())


def foreign_share(before: Seconds, after: Seconds) -> float:
    """Share of the CPUs that was neither idle nor used by this process or its children. From 0 to 1."""
    available = after.available - before.available
    foreign = (after.busy - before.busy) - (after.own - before.own)
    return min(1.0, max(0.0, foreign / available)) if available > 0 else 0.0


def read_seconds() -> Seconds:
    """The counters of the kernel, now."""
    times = psutil.cpu_times()
    # A guest's time is included in user time.
    busy = times.user + times.nice + times.system + times.irq + times.softirq + times.steal
    own = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # its time counts for its parent by now
            own += sum(child.cpu_times()[:4])
    return Seconds(busy, own, time.monotonic() * (os.cpu_count() or 1))
