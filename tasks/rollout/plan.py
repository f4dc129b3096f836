"""What to do so that the wanted release serves. Pure: no clock, network or environment."""

from __future__ import annotations

from tasks.core.addresses import host_and_port
from tasks.core.digests import short
from tasks.core.release import Release, ServiceState
from tasks.core.spec_sections import Rollout
from tasks.rollout.models import RolloutAction, RolloutPlan, Running


def plan_rollout(
    release: Release, state: ServiceState | None, running: Running | None, last: ServiceState | None = None
) -> RolloutPlan:
    """The steps from what runs to `release`.

    `state` is what the last finished rollout wrote; `running` what really takes traffic, with `up` only if
    it answers. They differ if a rollout was killed between the two, or if the service's processes were.
    `last` gives address and previous release of a service that has no state any more, because it was stopped.
    """
    wanted = release.id
    host, port = address_of(release.spec.rollout, state or last)
    action = _action(release, state, running, host, port)
    serving = running.release if running else None
    return RolloutPlan(
        action=action,
        host=host,
        port=port,
        serving=serving,
        previous=serving if serving not in (None, wanted) else _written_before(wanted, state or last),
        steps=_steps(action, release, serving, host, port),
    )


def release_before(state: ServiceState | None, running: Running | None) -> str | None:
    """The release to go back to: what served before what serves now; None if nothing did.

    What serves now and is not written down came after what is.
    """
    now = running.release if running else state.release if state else None
    return _written_before(now, state)


def _written_before(now: str | None, state: ServiceState | None) -> str | None:
    """The newest release but `now` that was written down."""
    written = (state.release, state.previous) if state else ()
    return next((found for found in written if found not in (None, now)), None)


def address_of(wanted: Rollout, state: ServiceState | None) -> tuple[str, int | None]:
    """Public host and port: a service that asks for no port keeps the one it was given first."""
    if wanted.port is None and state is not None and state.host == wanted.host:
        return wanted.host, state.port
    return wanted.host, wanted.port


def _action(
    release: Release, state: ServiceState | None, running: Running | None, host: str, port: int | None
) -> RolloutAction:
    if running is None:
        return RolloutAction.START
    at_its_address = running.host == host and port in (None, running.port)
    if running.release != release.id or not running.up or not at_its_address:
        return RolloutAction.REPLACE
    written = (
        state is not None
        and (state.release, state.host, state.port) == (running.release, running.host, running.port)
    )  # fmt: skip
    return RolloutAction.NOTHING if written else RolloutAction.ADOPT


def _steps(
    action: RolloutAction, release: Release, serving: str | None, host: str, port: int | None
) -> tuple[str, ...]:
    new = short(release.id)
    if action is RolloutAction.NOTHING:
        return (f"{new} serves already: nothing to do",)
    if action is RolloutAction.ADOPT:
        return (f"{new} serves already: write down that it does",)
    gate = release.spec.rollout.gate
    begin = (
        f"claim {host_and_port(host, port or '(a free port)')}",
        f"start {new} on a private address",
        f"gate within {gate.start_timeout_s:g} s: /health, then {gate.max_tokens} tokens for {gate.prompt!r}",
        f"switch traffic to {new}",
        "verify a completion at the public address",
    )
    if serving is None:
        return begin
    return (*begin, f"drain {short(serving)} for at most {release.spec.rollout.drain_s:g} s, then end it")
