"""Report of one look at the registry. Pure."""

from __future__ import annotations

from tasks.core.markdown import page, table
from tasks.core.records import Number
from tasks.core.verdicts import StageName
from tasks.registry.models import RegistryResult


def headline(result: RegistryResult) -> str:
    """The wanted version and the one that serves."""
    return f"{result.model}: wants {result.wanted_version}, serves {result.serving_version or 'nothing'}"


def numbers(result: RegistryResult) -> dict[str, Number]:
    """How often this version was requested."""
    if result.announcement is None:
        return {}
    return {"attempt": Number(value=result.announcement.attempt, unit="1")}


def markdown(result: RegistryResult) -> str:
    """The artifact."""
    event = f"`{result.announcement.event_id}`" if result.announcement else "no event"
    rows = [
        ("model", f"`{result.model}`"),
        ("wanted version", result.wanted_version),
        ("serving version", result.serving_version or "none"),
        ("event", event),
    ]
    return page(
        StageName.REGISTRY,
        result.verdict,
        f"{result.service}: {result.reason}",
        table(("fact", "value"), rows),
    )
