"""What a service went through, and how two of its releases differ. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from tasks.core.digests import short
from tasks.core.errors import NotFoundError, WrongUseError
from tasks.core.frozen import Frozen
from tasks.core.records import Number, Record
from tasks.core.release import Release
from tasks.core.verdicts import StageName
from tasks.rollout.models import RolloutResult

DEPLOY, STOP = "deploy", "stop"
LEAST_DIGITS = 4
"""Hexadecimal digits that name a release."""

_NOT_COMPARED = {"schema", "at", "numbers", "records", "launch", "engine", "target"}
"""Of a release: when it was made and what was measured, and what its spec or its configuration says as well."""


class Event(Frozen):
    """One rollout or stop of a service, as its record tells it.

    `by` is the command or flow that asked for it, `release` the one that it was to serve, `serving` the one that
    served afterwards. `serves` is whether `release` serves now, `kept` whether it can be rolled back to.
    """

    at: datetime
    by: str
    outcome: str
    release: str | None
    serving: str | None
    reason: str | None
    engine: str | None
    format: str | None
    batch: int | None
    serves: bool
    kept: bool
    seconds: float
    host_fingerprint: str
    record: str


class Difference(Frozen):
    """A value that two releases do not share; None where one of them has no such key."""

    key: str
    before: Any
    after: Any


class Figure(Frozen):
    """What was measured of two releases; None where it was not."""

    name: str
    unit: str
    before: float | None
    after: float | None


def history(
    name: str, records: Iterable[Record], releases: Mapping[str, Release], serving: str | None
) -> tuple[Event, ...]:
    """What the records of rollouts say of the service of that name, oldest first."""
    mine = (one for one in records if one.stage is StageName.ROLLOUT and one.subject == name)
    return tuple(_event(record, releases, serving) for record in sorted(mine, key=lambda one: one.id))


def _event(record: Record, releases: Mapping[str, Release], serving: str | None) -> Event:
    inputs = record.evidence.get("inputs", {})
    result = _result_of(record)
    wanted = result.release if result else inputs.get("release")
    release = releases.get(wanted) if isinstance(wanted, str) else None
    return Event(
        at=record.at,
        by=STOP if STOP in inputs else str(record.evidence.get("by") or DEPLOY),
        outcome=record.outcome,
        release=wanted if isinstance(wanted, str) else None,
        serving=result.serving if result else None,
        reason=result.reason if result else _error_of(record),
        engine=f"{release.engine} {release.engine_version}" if release else None,
        format=release.candidate_format if release else None,
        batch=release.config.batch if release else None,
        serves=wanted is not None and wanted == serving,
        kept=release is not None,
        seconds=record.seconds,
        host_fingerprint=record.host_fingerprint,
        record=record.id,
    )


def _error_of(record: Record) -> str | None:
    error = record.evidence.get("error")
    what = error.get("what") if isinstance(error, dict) else None
    return what if isinstance(what, str) else None


def _result_of(record: Record) -> RolloutResult | None:
    """None if it came to none, or if another version wrote it otherwise."""
    try:
        return RolloutResult.model_validate(record.evidence["result"])
    except (KeyError, ValidationError):
        return None


def find_release(text: str, releases: Mapping[str, Release], service: str) -> Release:
    """The release whose id begins with that text, with or without `sha256:`.

    Raises `NotFoundError`, or `WrongUseError` for a text that names several, or is too short.
    """
    digits = text.removeprefix("sha256:")
    if len(digits) < LEAST_DIGITS:
        raise WrongUseError(
            f"{text!r} is too short to name a release",
            fix=f"give at least {LEAST_DIGITS} digits of its id: slipway history {service}",
        )
    found = {key: one for key, one in releases.items() if key.removeprefix("sha256:").startswith(digits)}
    if len(found) > 1:
        names = ", ".join(short(key) for key in found)
        raise WrongUseError(f"{text} names several releases of {service}: {names}", fix="give more digits")
    if not found:
        raise NotFoundError(
            f"{service} has no kept release {text}", fix=f"list them: slipway history {service}"
        )
    return next(iter(found.values()))


def differences(before: Release, after: Release) -> tuple[Difference, ...]:
    """What decides what runs and differs, by key; the keys of the spec as in a spec file."""
    old, new = _compared(before), _compared(after)
    return tuple(
        Difference(key=key, before=old.get(key), after=new.get(key))
        for key in dict.fromkeys((*new, *old))
        if old.get(key) != new.get(key)
    )


def _compared(release: Release) -> dict[str, Any]:
    document = release.model_dump(mode="json", by_alias=True, exclude_none=False)
    spec = document.pop("spec")
    rest = {key: value for key, value in document.items() if key not in _NOT_COMPARED}
    return {**flat(spec), **{f"release.{key}": value for key, value in flat(rest).items()}}


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys joined by dots; lists are values."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return found


def figures(before: Iterable[Record], after: Iterable[Record]) -> tuple[Figure, ...]:
    """What the records of either release measured of the format and the batch size that it serves."""
    old, new = _measured(before), _measured(after)
    return tuple(_figure(name, old.get(name), new.get(name)) for name in dict.fromkeys((*new, *old)))


def _measured(records: Iterable[Record]) -> dict[str, Number]:
    stages = (StageName.QUANTIZATION, StageName.BATCHING)
    return {name: one for record in records if record.stage in stages for name, one in record.numbers.items()}


def _figure(name: str, before: Number | None, after: Number | None) -> Figure:
    known = after or before
    assert known is not None
    return Figure(
        name=name,
        unit=known.unit,
        before=before.value if before else None,
        after=after.value if after else None,
    )
