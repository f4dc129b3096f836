"""How an engine serves a model's weights on a GPU, from which GPU on, and in how much memory. Pure.

The knowledge is in `data/floors.toml`, `data/weight_types.toml` and `data/weights.toml`. If the engine's release, its
CUDA or the model's family is not known, an answer is given only where all rows that are left agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from packaging.version import Version

from tasks.compatibility.conditions import contains
from tasks.compatibility.rules import FloorRow, Row, Tables, WeightsRow, WeightTypeRow
from tasks.core.facts import Facts

UNKNOWN: Any = object()
"""Of a served model: this is not known. None means looked for, and absent."""

SOURCES = ".sources"
"""Behind the name of a field: the sources of the rows that it comes from."""
_FULL_BITS = 16.0
"""What an unpacked weight takes."""
_MOST_TYPES = 4


@dataclass(frozen=True)
class ServedModel:
    """What serves, and what is served. Versions as text; each may be `UNKNOWN`."""

    engine: str | None
    version: Any = UNKNOWN
    cuda: Any = UNKNOWN
    family: Any = UNKNOWN
    dtype: str | None = None


def find_type(name: str | None, tables: Tables) -> WeightTypeRow | None:
    """The type of weights of that name or alias, in any case."""
    key = (name or "").lower()
    return next((row for row in tables.weight_types if key == row.name or key in row.aliases), None)


def floor_of(model: ServedModel, capability: str, tables: Tables) -> Any:
    """The lowest capability that the engine's binaries serve; None without one, `UNKNOWN` if it depends on what is
    not known and the GPU lies between the floors in question."""
    left = [row.cc for row in _floors(model, tables)]
    if not left:
        return None
    low, high = min(left, key=Version), max(left, key=Version)
    if contains(f"<{low}", capability):
        return low
    return high if contains(f">={high}", capability) else UNKNOWN


def serving(model: ServedModel, capability: str, tables: Tables) -> Any:
    """How the engine serves weights of this type on a GPU of that capability; `UNKNOWN` without a row."""
    return _agreed(_rows(model, capability, tables))


def _floors(model: ServedModel, tables: Tables) -> list[FloorRow]:
    """Rows of the engine that hold, or may hold."""
    own = [row for row in tables.floors if row.engine == model.engine]
    return [row for row in own if _floor_matches(row, model) is not False]


def _rows(model: ServedModel, capability: str, tables: Tables) -> list[WeightsRow]:
    """Rows that may hold, up to the first that holds; none if no row is known to hold."""
    found = []
    for row in tables.weights:
        if model.engine in row.engines and model.dtype in row.types:
            matches = _weights_match(row, model, capability)
            if matches is not False:
                found.append(row)
            if matches:
                return found
    return []


def _agreed(rows: Sequence[WeightsRow]) -> Any:
    answers = {row.serves for row in rows}
    return answers.pop() if len(answers) == 1 else UNKNOWN


def types_served(model: ServedModel, capability: str, tables: Tables) -> tuple[str, ...]:
    """Other types that the engine serves there natively in at most 16 bits a weight: those that come in the same form
    first, then the nearest in size."""
    here = find_type(model.dtype, tables)
    bits, form = (here.bits, here.form) if here else (_FULL_BITS, "checkpoint")
    served = [
        row
        for row in tables.weight_types
        if row != here
        and row.bits <= _FULL_BITS
        and serving(replace(model, dtype=row.name), capability, tables) == "native"
    ]
    served.sort(key=lambda row: (row.form != form, abs(row.bits - bits), row.name))
    return tuple(row.name for row in served[:_MOST_TYPES])


def describe_serving(
    model: ServedModel, capability: str | None, tables: Tables
) -> Iterator[tuple[str, str | tuple[str, ...] | None]]:
    """Fields of one GPU: the engine's floor, how it serves the weights, which others if it refuses these; sources.

    None, which no rule asks for, without a capability (that decides by itself) or a type of weights.
    """
    floor = None if capability is None else floor_of(model, capability, tables)
    if floor is not UNKNOWN:
        yield "gpu.engine_floor", floor
        rows = _floors(model, tables) if floor else ()
        yield f"gpu.engine_floor{SOURCES}", _sources(row for row in rows if row.cc == floor)
    if capability is None or model.dtype is None:
        yield "gpu.weights", None
        return
    found = _rows(model, capability, tables)
    how = _agreed(found)
    if how is not UNKNOWN:
        yield "gpu.weights", how
        yield f"gpu.weights{SOURCES}", _sources(found)
    if how == "refused":
        others = types_served(model, capability, tables)
        yield "gpu.weights_instead", ", ".join(others) or "none that is listed"


def _sources(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(source for row in rows for source in row.sources))


def describe_room(
    facts: Facts, dtype: str | None, gpus: Iterable[Mapping[str, Any]], tables: Tables
) -> dict[str, Any]:
    """Whether the weights fit the memory of the GPUs that are to serve them; None, which no rule asks for, if a size
    is not known."""
    sizes = sorted((gpu.memory_bytes for gpu in facts.gpus if gpu.memory_bytes is not None), reverse=True)
    if facts.weights_bytes is None or not sizes or len(sizes) < len(facts.gpus):
        return {"weights_fit": None}
    there = sum(sizes[: facts.gpus_wanted or None])
    taken = float(facts.weights_bytes)
    row = find_type(dtype, tables)
    if row and any(gpu.get("gpu.weights") == "unpacked" for gpu in gpus):
        taken *= max(1.0, _FULL_BITS / row.bits)
    return {
        "weights_fit": taken <= there,
        "weights_room": f"{taken / 1e9:.0f} GB of weights, {there / 1e9:.0f} GB of GPU memory",
    }


def _floor_matches(row: FloorRow, model: ServedModel) -> bool | None:
    return _all(_compared(row.releases, model.version), _compared(row.cuda, model.cuda))


def _weights_match(row: WeightsRow, model: ServedModel, capability: str) -> bool | None:
    if not contains(row.cc, capability):
        return False
    return _all(_compared(row.releases, model.version), _of_family(row.families, model.family))


def _compared(wanted: str | None, version: Any) -> bool | None:
    """None if the version is not known, unless only one would do; no version satisfies a comparison if it is
    absent."""
    if wanted is None:
        return True
    if version is UNKNOWN:
        return False if wanted.startswith("==") else None
    return version is not None and contains(wanted, version)


def _of_family(patterns: tuple[str, ...], family: Any) -> bool | None:
    if not patterns:
        return True
    if family is UNKNOWN:
        return None
    return family is not None and any(fnmatchcase(family, pattern) for pattern in patterns)


def _all(*answers: bool | None) -> bool | None:
    if False in answers:
        return False
    return None if None in answers else True
