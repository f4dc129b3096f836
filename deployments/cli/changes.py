"""What a deploy would do again, and why: the spec compared with that of the serving release, key by key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tasks.core.errors import NotFoundError, SlipwayError
from tasks.core.records import Record, RecordStore, load_words, standing
from tasks.core.release import Release, ServiceFolder
from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec
from tasks.core.verdicts import StageName
from tasks.rollout.history import flat

_BUILT = ("engine", "engine_version", "environment")
_STAGED = ("engine", "model", "staging", "hardware", "serving.trust_remote_code")
_MEASURED = (*_BUILT, *_STAGED, "engine_args", "engine_env", "tuning.context")
DECIDED_BY: Mapping[StageName, tuple[str, ...]] = {
    StageName.ENVIRONMENT: _BUILT,
    StageName.COMPATIBILITY: (*_BUILT, "model", "target", "hardware"),
    StageName.STAGING: _STAGED,
    StageName.QUANTIZATION: (
        *_MEASURED,
        *("tuning.candidates", "tuning.quality_text", "tuning.quality_tokens", "tuning.task_set"),
        "tuning.baseline",
        *("tuning.calibration_text", "tuning.calibration_tokens"),
        *("objectives.policy", "objectives.quality_tolerance", "objectives.task_tolerance"),
        "objectives.memory_fraction",
        "task",
        "serving.pooling",
    ),
    StageName.BATCHING: (
        *_MEASURED,
        "tuning",
        "objectives",
        "serving.chat_template",
        "task",
        "serving.pooling",
    ),
    StageName.ROLLOUT: ("",),
}
"""Keys of the spec that a stage's result depends on, including all below them; the empty key is the whole spec."""


@dataclass(frozen=True)
class Standing:
    """Whether a record would be used instead of a stage's work, and the reason in words."""

    cached: bool
    why: str
    record: str | None = None


def changed_keys(before: DeploySpec, after: DeploySpec) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, with both values; lists are values."""
    old, new = (flat(spec.model_dump(mode="json")) for spec in (before, after))
    names = dict.fromkeys((*new, *old))
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def standings(spec: DeploySpec, settings: Settings, fresh: Collection[str]) -> dict[StageName, Standing]:
    """For each stage that may use a record, whether its newest record counts.

    Things outside the spec, such as the model's files, are not checked.
    """
    try:
        _, release = ServiceFolder(settings.services, spec.name).serving()
    except NotFoundError:
        return {stage: Standing(False, f"no release of {spec.name} serves") for stage in DECIDED_BY}
    except SlipwayError as error:
        return {stage: Standing(False, error.what) for stage in DECIDED_BY}
    from blocks.storage.record_store import open_record_store

    store = open_record_store(settings)
    records = records_of(release, store)
    changes = changed_keys(release.spec, spec)
    return {
        stage: Standing(False, "requested by --fresh")
        if stage in fresh
        else _standing(stage, changes, records.get(stage), store, settings)
        for stage in DECIDED_BY
    }


def _standing(
    stage: StageName,
    changes: Mapping[str, tuple[Any, Any]],
    record: Record | None,
    store: RecordStore,
    settings: Settings,
) -> Standing:
    decisive = [name for name in changes if any(_is_below(name, key) for key in DECIDED_BY[stage])]
    if decisive:
        told = [f"{name}: {_short(changes[name][0])} -> {_short(changes[name][1])}" for name in decisive[:3]]
        more = [f"{len(decisive) - 3} more keys"] if len(decisive) > 3 else []
        return Standing(False, f"changed: {'; '.join([*told, *more])}")
    if stage is StageName.ROLLOUT:
        return Standing(True, "this release serves already, unless a stage above gives another answer")
    if record is None:
        return Standing(False, "the record of the serving release is gone")
    same = store.with_inputs(stage, record.inputs_digest)
    newest = standing(same, inputs_digest=record.inputs_digest, host_fingerprint=record.host_fingerprint)
    if newest is None:
        return Standing(False, "the newest record with these inputs says no")
    load = load_words(newest.numbers, settings.busy_share)
    return Standing(True, f"record {newest.id}, {_age(newest)} old{load}", newest.id)


def records_of(release: Release, store: RecordStore) -> dict[StageName, Record]:
    """The records that the release names, as far as they can be read."""
    found: dict[StageName, Record] = {}
    for record_id in release.records:
        try:
            record = store.get(record_id)
        except SlipwayError:
            continue
        found[record.stage] = record
    return found


def _is_below(name: str, key: str) -> bool:
    return not key or name == key or name.startswith(f"{key}.")


def _short(value: Any) -> str:
    text = (
        ", ".join(map(str, value)) if isinstance(value, list) else "nothing" if value is None else str(value)
    )
    return text if len(text) <= 60 else f"{text[:59]}…"


def _age(record: Record) -> str:
    minutes = max(0, int((datetime.now(UTC) - record.at).total_seconds() // 60))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} days"
