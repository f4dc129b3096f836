"""A hung engine: requests wait, it sends nothing, not even an answer to `/health`, and it uses no CPU time.

An engine that computes a long prompt sends nothing either, for minutes; but it answers `/health`. One whose
connections are all taken by a burst does not answer that either; but it computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from tasks.rollout.proxy.slots import BACKEND_HOST

HUNG_S = 60.0
LOOKS = 12
"""Looks in that time: each asks `/health` if nothing was sent since the one before."""

BUSY_SHARE = 0.05
"""Share of one CPU that an engine at work uses at least, and an engine that only waits does not."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Traffic(NamedTuple):
    """The requests that an engine works on now, and the bytes of answers that it has sent so far.

    If not every proxy could be asked, it is only `known` in part, and there may be more of both.
    """

    requests: int
    sent_bytes: int
    known: bool = True

    @property
    def over(self) -> bool:
        """Whether no request is left for sure."""
        return self.known and not self.requests


Look = Callable[[], Awaitable[Traffic]]
Probe = Callable[[int, float], Awaitable[bool]]
"""Whether the engine at a port of the loopback sends anything within so many seconds when asked for `/health`."""


async def answers_health(port: int, timeout_s: float) -> bool:
    """Whether `/health` answers anything at all; a connection that is refused is an answer, too."""
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(BACKEND_HOST, port)
            writer.write(
                f"GET /health HTTP/1.1\r\nHost: {BACKEND_HOST}\r\nConnection: close\r\n\r\n".encode()
            )
            await reader.read(1)
    except TimeoutError:
        return False
    except OSError:
        return True  # it is not there to hang
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                writer.transport.abort()
    return True


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and all below it have used so far; 0 for one that is gone."""
    try:
        # The fields behind the name, which may hold anything; utime and stime are the 14th and 15th of all.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S + sum(map(cpu_seconds, children))


class HangWatch:
    """Checks one run of an engine repeatedly. `clock` gives seconds, `cpu_s` the CPU time used."""

    def __init__(
        self,
        port: int,
        look: Look,
        hung_s: float = HUNG_S,
        *,
        probe: Probe = answers_health,
        clock: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._port = port
        self._look = look
        self._hung_s = hung_s
        self._probe = probe
        self._clock = clock
        self._cpu_s = cpu_s
        self._sent_bytes: int | None = None
        self._last_sign = self._last_look = clock()
        self._used_s = cpu_s()

    @property
    def period_s(self) -> float:
        """Time between two looks."""
        return self._hung_s / LOOKS

    async def is_hung(self) -> bool:
        """Whether requests have waited without a sign of life for the whole time."""
        busy = self._is_busy()
        traffic = await self._look()
        quiet = traffic.requests > 0 and self._sent_bytes in (None, traffic.sent_bytes) and not busy
        self._sent_bytes = traffic.sent_bytes
        if not quiet or await self._probe(self._port, self.period_s):
            self._last_sign = self._clock()
            return False
        return self._clock() - self._last_sign >= self._hung_s

    def _is_busy(self) -> bool:
        """Whether it has computed since the last look."""
        now, used_s = self._clock(), self._cpu_s()
        busy = used_s - self._used_s > BUSY_SHARE * (now - self._last_look)
        self._last_look, self._used_s = now, used_s
        return busy
