"""A hung engine: requests wait, and it sends nothing, not even an answer to `/health`.

An engine that computes a long prompt sends nothing either, for minutes; but it answers `/health`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from tasks.rollout.daemon.forwarder import Backend

HUNG_S = 60.0
LOOKS = 12
"""Looks in that time: each asks `/health` if nothing was sent since the one before."""

Probe = Callable[[Backend, float], Awaitable[bool]]
"""Whether an engine sends anything within so many seconds when it is asked for `/health`."""


async def answers_health(backend: Backend, timeout_s: float) -> bool:
    """Whether `/health` answers anything at all; a connection that is refused is an answer, too."""
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(backend.host, backend.port)
            writer.write(
                f"GET /health HTTP/1.1\r\nHost: {backend.host}\r\nConnection: close\r\n\r\n".encode()
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


class HangWatch:
    """Looks at one run of an engine again and again. `clock` gives seconds."""

    def __init__(
        self,
        backend: Backend,
        hung_s: float = HUNG_S,
        *,
        probe: Probe = answers_health,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._hung_s = hung_s
        self._probe = probe
        self._clock = clock
        self._heard = backend.heard
        self._last_sign = clock()

    @property
    def period_s(self) -> float:
        """Time between two looks."""
        return self._hung_s / LOOKS

    async def is_hung(self) -> bool:
        """Whether requests have waited without a sign of life for the whole time."""
        quiet = self._backend.open_requests > 0 and self._backend.heard == self._heard
        if not quiet or await self._probe(self._backend, self.period_s):
            self._heard = self._backend.heard
            self._last_sign = self._clock()
            return False
        return self._clock() - self._last_sign >= self._hung_s
