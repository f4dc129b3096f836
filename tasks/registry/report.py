"""One look at the registry, for people."""

from __future__ import annotations

from tasks.core.records import Number
from tasks.registry.models import RegistryResult


def headline(result: RegistryResult) -> str:
    """Wanted against serving."""
    return f"{result.model}: wants {result.wanted_version}, serves {result.serving_version or 'nothing'}"


def numbers(result: RegistryResult) -> dict[str, Number]:
    """How often this version was asked for."""
    if result.announcement is None:
        return {}
    return {"attempt": Number(value=result.announcement.attempt, unit="1")}


def markdown(result: RegistryResult) -> str:
    """The artifact."""
    event = f"event `{result.announcement.event_id}`" if result.announcement else "no event"
    return (
        f"# Registry: {result.service}\n\n"
        "| model | wanted | serving | verdict | event |\n|---|---|---|---|---|\n"
        f"| {result.model} | {result.wanted_version} | {result.serving_version or '-'} "
        f"| {result.verdict} | {event} |\n\n{result.reason}\n"
    )
