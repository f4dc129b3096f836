"""What a rollout asks of the place where a service runs, and of an engine's HTTP interface."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from tasks.core.release import Release
from tasks.rollout.models import Running
from tasks.rollout.proxy.keys import Digests


class Completion(Protocol):
    """What `blocks.engine.api.Completion` is to a rollout."""

    @property
    def text(self) -> str: ...

    @property
    def prompt_tokens(self) -> int: ...


class Api(Protocol):
    """An engine's HTTP interface, as `blocks.engine.api.EngineApi` gives it."""

    def ready(self) -> bool: ...

    def complete(self, model: str, prompt: str, max_tokens: int, /) -> Completion: ...

    def chat(self, model: str, message: str, max_tokens: int, /) -> Completion: ...

    def embed(self, model: str, text: str, /) -> Completion: ...

    def rank(self, model: str, query: str, documents: tuple[str, ...], /) -> Completion: ...
    def post(self, path: str, body: dict[str, Any], /) -> dict[str, Any]: ...


OpenApi = Callable[[str], AbstractContextManager[Api]]
"""Opens a client for a base URL."""


@dataclass(frozen=True)
class NewRelease:
    """A started engine that gets no traffic yet. `base_url` is its private address, without `/v1`."""

    release: str
    base_url: str


class Target(Protocol):
    """Where a service runs. One object serves one service, in one command.

    A new release that was neither settled nor reverted when the object is closed, or when this process is
    killed, must end: at once, or at the latest by the next `claim`.
    """

    def running(self) -> Running | None:
        """What takes traffic now; None if nothing does. Changes nothing, and starts nothing."""

    def written(self) -> Running | None:
        """What the target itself wrote down to serve, not `up`, whether or not it runs; None if nothing readable."""

    def claim(self, host: str, port: int | None, digests: Digests = None, /) -> int:
        """Make the public address this service's own, and sweep what a killed rollout left; the port.

        A new address lets in only requests with a key that has one of the `digests`; None lets in everyone.
        Does nothing where the address is held already: what opens it stays as it is, until `lock`. A service that
        serves elsewhere does so until `settle`. Raises `PortTakenError` that names the port and its
        holder, with nothing started.
        """

    def lock(self, digests: Digests) -> None:
        """Let in only requests with such a key where the service is, from the next one on; None lets in everyone.

        No request in flight is cut, and it lasts through restarts. Raises `RolloutError` if nothing serves.
        """

    def start(self, release: Release) -> NewRelease:
        """Start `release` on a private address. Raises `RolloutError` with nothing left behind."""

    def fault(self, new: NewRelease) -> str | None:
        """How the new release died; None while it lives."""

    def new_release_log(self, new: NewRelease, lines: int) -> str:
        """The end of the new release's log."""

    def switch(self, new: NewRelease) -> None:
        """Send new requests to the new release. The previous one keeps those it has, and stays up."""

    def settle(self, new: NewRelease, *, drain_s: float) -> None:
        """Make the switch durable, at once: from here on the new release is what serves.

        Something that outlives this command may end the previous one from now on, as `end_previous` does.
        """

    def end_previous(self, *, drain_s: float) -> None:
        """End what served before, once it has no request left or after `drain_s`, unless `settle` sees to it."""

    def revert(self, new: NewRelease, *, drain_s: float) -> None:
        """Undo: the previous release gets the traffic if it does not have it, and the new one ends."""

    def stop(self, *, drain_s: float) -> None:
        """End the service and everything that belongs to it, after its requests or `drain_s`. Idempotent."""

    def log_tail(self, lines: int) -> str:
        """The end of the log of what serves, or of what served last."""
