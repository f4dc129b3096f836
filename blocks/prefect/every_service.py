"""A nightly check of every service on this host; a failure does not prevent the other checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from blocks.prefect.flows import show_state
from tasks.core.settings import Settings
from tasks.core.stage import Outcome
from tasks.rollout.recovery.apply import should_run

_ORDER = ("none", "healthy", "suspected", "degraded", "confirmed", "unhealthy")


def worst_of_every_service(check: Callable[[str], Outcome[Any] | None]) -> Outcome[Any] | None:
    """Check each running service in turn; the worst outcome. Raises the first fault at the end.

    `check` is a flow, whose run records its fault: a service that cannot be checked does not end the others.
    """
    services = Settings.load().services
    outcomes: list[Outcome[Any]] = []
    faults: dict[str, Exception] = {}
    for name in _names(services):
        try:
            outcomes += [outcome] if (outcome := check(name)) else []
        except Exception as error:  # noqa: BLE001 - that service's own run has recorded it
            faults[name] = error
    still_running = _names(services)
    for name, fault in faults.items():
        if name in still_running:  # a service that has been stopped since need not be checked
            raise fault
    if not outcomes:
        show_state("Nothing to check", "no service runs on this host")
        return None
    return max(outcomes, key=lambda outcome: _ORDER.index(outcome.verdict))


def _names(services: Path) -> list[str]:
    return [folder.name for folder in should_run(services)]


def run_name(check: str) -> str:
    """`health of tiny`, or `health of every service`; read from the running flow's parameters."""
    return f"{check} of {flow_run.parameters.get('name') or 'every service'}"
