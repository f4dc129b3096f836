"""Which earlier record a search starts from. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.batching.models import Prior
from tasks.core.records import Record


def find_prior(records: Sequence[Record], inputs: Mapping[str, Any], host: str) -> Prior | None:
    """The size to start from: what the nearest earlier search of this model, engine and host chose.

    A search with these very inputs keeps the prior it had: its answer is measured, and a later record about
    something else would only change where it began.
    """
    known = [record for record in records if record.good and record.host_fingerprint == host]
    same = [record for record in known if _inputs(record) == inputs]
    if same:
        began = {record.id: record for record in known}
        consulted = [began[name] for name in same[-1].consulted if name in began]
        return _prior(consulted[-1]) if consulted else None
    near = [record for record in known if _comparable(_inputs(record), inputs) and _batch(record)]
    return _prior(max(near, key=lambda record: _nearness(record, inputs))) if near else None


def _inputs(record: Record) -> Mapping[str, Any]:
    found = record.evidence.get("inputs")
    return found if isinstance(found, dict) else {}


def _batch(record: Record) -> int | None:
    result = record.evidence.get("result")
    batch = result.get("batch") if isinstance(result, dict) else None
    return batch if isinstance(batch, int) and batch >= 1 else None


def _comparable(found: Mapping[str, Any], inputs: Mapping[str, Any]) -> bool:
    return all(found.get(key) == inputs.get(key) for key in ("engine", "model_digest"))


def _nearness(record: Record, inputs: Mapping[str, Any]) -> tuple[bool, float, str]:
    """The same candidate before another one, then the context most alike, then the newest."""
    found = _inputs(record)
    context = float(found.get("context") or 1), float(inputs["context"])
    return found.get("format") == inputs["format"], -abs(math.log(context[0] / context[1])), record.id


def _prior(record: Record) -> Prior | None:
    batch = _batch(record)
    return Prior(batch=batch, record=record.id) if batch else None
