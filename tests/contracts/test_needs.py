"""The twelve needs that were written down before the recommendation was first run: all are met, with their reasons."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tasks.core.facts import Facts
from tasks.engines.recommend import ChoiceKind, Measured, Need, Recommendation, recommend

NEEDS: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name("needs.toml").read_text())["need"]
KINDS: tuple[ChoiceKind, ...] = ("engine", "family", "application", "sourcing")
_MANY = re.compile(r"(\d+) x (.+), ([0-9.]+), ([0-9_]+)")


def facts_of(row: dict[str, Any]) -> Facts:
    values = dict(row["facts"])
    if isinstance(values["gpus"], str):
        match = _MANY.fullmatch(values["gpus"])
        assert match is not None
        gpu = {
            "name": match[2],
            "compute_capability": match[3],
            "memory_bytes": int(match[4].replace("_", "")),
        }
        values["gpus"] = [gpu] * int(match[1])
    return Facts.model_validate(values)


def answer(row: dict[str, Any]) -> Recommendation:
    records = []
    for record in row.get("records", ()):
        values = {"record" if key == "id" else key: value for key, value in record.items()}
        records.append(Measured.model_validate(values))
    return recommend(Need(row["need"]), facts_of(row), records, family=row.get("family"))


def test_there_are_twelve() -> None:
    assert len({row["id"] for row in NEEDS}) == 12


@pytest.mark.parametrize("row", NEEDS, ids=lambda row: row["id"])
def test_a_need_is_met_and_each_reason_cites(row: dict[str, Any]) -> None:
    found = answer(row)
    wanted = dict(row["expect"])
    cites = wanted.pop("cites", [])
    best = {kind: choice.name for kind in KINDS if (choice := found.best(kind)) is not None}
    assert {kind: best.get(kind) for kind in wanted} == wanted
    everything = [reason for choice in found.choices for reason in (*choice.reasons, *choice.against)]
    for reason in everything:
        assert reason.cites, reason
    for kind in best:
        choice = found.best(kind)
        assert choice is not None
        assert choice.reasons, f"{choice.name} is recommended without a reason"
    assert set(cites) <= {cited for reason in everything for cited in reason.cites}
