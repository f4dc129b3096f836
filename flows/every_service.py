"""A nightly check looks at every service of this host; one that fails keeps none of the others from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.recording import Outcome
from tasks.core.settings import Settings

_ORDER = ("none", "healthy", "suspected", "degraded", "confirmed", "unhealthy")


def worst_of_every_service(check: Callable[[str], Any]) -> Outcome[Any]:
    """Check each running service in turn; the state of the worst one. Raises the first fault at the end.

    `check` is a flow called with `return_state=True`: a service that cannot be checked does not end the others.
    """
    settings = Settings.load()
    states: dict[str, State[Any]] = {name: check(name) for name in running_services(settings)}
    stopped_meanwhile = set(states) - set(running_services(settings))
    for name, state in states.items():
        if not state.is_completed() and name not in stopped_meanwhile:
            state.result()  # raises what it failed with
    outcomes = [cast(Outcome[Any], state.result()) for state in states.values() if state.is_completed()]
    if not outcomes:
        nothing: Any = Completed(name="Nothing to check", message="no service runs on this host")
        return cast("Outcome[Any]", nothing)
    return max(outcomes, key=lambda outcome: _ORDER.index(outcome.verdict)).as_state()


def run_name(check: str) -> str:
    """`health of tiny`, or `health of every service`; read from the running flow's parameters."""
    return f"{check} of {flow_run.parameters.get('name') or 'every service'}"


def running_services(settings: Settings) -> list[str]:
    """Names of the services that were deployed and not stopped."""
    return sorted(path.parent.name for path in settings.services.glob("*/current.json"))
