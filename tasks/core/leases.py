"""The lease of a service: hold it to change the service; the holder may state a purpose for those who wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from tasks.core.cancellation import current, until
from tasks.core.errors import BusyError
from tasks.core.files import file_lock, holder_says, is_held
from tasks.core.settings import Settings

WAIT_S = 5.0
"""How long a command waits for a short operation before it says that another run works on the service."""

END_S = 60.0
"""How long `stop` waits for a recovery that it has asked to end."""

_BRINGS_BACK = "is bringing it back"
_POLL_S = 0.05


_held: ContextVar[frozenset[Path]] = ContextVar("slipway_held_leases", default=frozenset())


@contextlib.contextmanager
def hold_service(settings: Settings, name: str, *, wait_s: float | None = None) -> Iterator[None]:
    """Hold the lease of a service. Waits for another holder up to `wait_s`, by default `WAIT_S`.

    Raises `BusyError`, `StageCancelledError` if the run is cancelled while it waits, and `DiskError`.
    """
    with _hold(settings, name, lambda _: WAIT_S if wait_s is None else wait_s):
        token = _held.set(_held.get() | {settings.service_lease(name)})
        try:
            yield
        finally:
            _held.reset(token)


@contextlib.contextmanager
def share_service(settings: Settings, name: str) -> Iterator[None]:
    """Work under the lease that the caller holds by `hold_service`, else hold it."""
    with contextlib.ExitStack() as stack:
        if settings.service_lease(name) not in _held.get():
            stack.enter_context(hold_service(settings, name))
        yield


@contextlib.contextmanager
def bring_back(settings: Settings, name: str, *, by: str, wait_s: float | None = None) -> Iterator[None]:
    """Hold the lease while `by` brings the service back; `end_service` ends that with `StageCancelledError`."""
    purpose = f"{by} {_BRINGS_BACK}"
    with (
        _hold(settings, name, lambda _: WAIT_S if wait_s is None else wait_s, purpose),
        stoppable(settings, name),
    ):
        yield


@contextlib.contextmanager
def end_service(settings: Settings, name: str) -> Iterator[None]:
    """Hold the lease of a service in order to end it. A recovery that holds it is asked to end, and has
    `END_S` for that."""
    with (
        file_lock(_wish(settings, name), wait=True, holder=f"the end of {name}", shared=True),
        _hold(settings, name, lambda says: END_S if says.endswith(_BRINGS_BACK) else WAIT_S),
    ):
        yield


@contextlib.contextmanager
def stoppable(settings: Settings, name: str) -> Iterator[None]:
    """Work under the lease that ends with `StageCancelledError` as soon as a `stop` waits for the lease."""
    with until(lambda: is_to_end(settings, name), f"slipway stop {name}"):
        yield


def is_to_end(settings: Settings, name: str) -> bool:
    """Whether a `slipway stop` of the service, not a killed one, is waiting now. Only for the holder of the lease."""
    path = _wish(settings, name)
    return path.exists() and is_held(path)


@contextlib.contextmanager
def _hold(
    settings: Settings, name: str, patience: Callable[[str], float], purpose: str = ""
) -> Iterator[None]:
    """`patience` maps the other holder's purpose to the seconds that it has to end."""
    lease, begin = settings.service_lease(name), time.monotonic()
    with contextlib.ExitStack() as held:
        while True:
            try:
                lock = file_lock(lease, wait=False, holder=f"the service {name}", purpose=purpose)
                held.enter_context(lock)
                break
            except BusyError:
                if time.monotonic() - begin >= patience(holder_says(lease)):
                    raise
            _pause()
        yield


def _pause() -> None:
    current().check()
    current().wait(_POLL_S)


def _wish(settings: Settings, name: str) -> Path:
    return settings.leases / f"stop-{name}"
