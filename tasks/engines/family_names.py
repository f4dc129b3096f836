"""Families by the names that people use for them. Pure."""

from __future__ import annotations

import difflib
import re

from tasks.core.errors import WrongUseError
from tasks.engines.families import Family, families

OWN = "own"
"""The name of an architecture of one's own."""

_ALIKE = 0.8
"""Names this similar are taken for slips of the pen (`difflib`)."""

_TAIL = re.compile(
    r"(v?[0-9]+(x[0-9]+)?[bmk]?|[aek][0-9]+b?|instruct|chat|it|base|hf|thinking|fp8|awq|gptq|bf16|"
    r"large|medium|small|mini|nano|super|ultra|scout|maverick|air|coder|moe|nemo|plus)*"
)
"""What may follow a family's name in that of a model: versions, sizes, and words of variants."""


def named_family(name: str) -> Family | None:
    """The family that someone means by a name: that of the table, of an architecture, or of a model, in any spelling
    (`llama-3.1`, `Llama3.1`, `meta-llama/Llama-3.1-8B-Instruct`). None for another name."""
    for family in families():
        if name.lower() in (one.lower() for one in (family.name, *family.architectures)):
            return family
    asked = _plain(name.rpartition("/")[2])
    found = [
        (len(start), family)
        for start, family in _spellings()
        if asked.startswith(start) and _TAIL.fullmatch(asked[len(start) :])
    ]
    return max(found, key=lambda one: one[0])[1] if found else None


def check_name(name: str) -> None:
    """Raise `WrongUseError`, which asks back, for an unknown name that is like a known one."""
    if named_family(name) is not None or name == OWN:
        return
    known = dict(_spellings())
    like = difflib.get_close_matches(_plain(name.rpartition("/")[2]), known, n=1, cutoff=_ALIKE)
    if like:
        meant = known[like[0]].name
        raise WrongUseError(
            f"Slipway knows no family {name[:80]}; did you mean {meant}?",
            fix=f"use --family {meant}, or --family {OWN} for an architecture of your own",
        )


def _spellings() -> list[tuple[str, Family]]:
    return [(_plain(one), family) for family in families() for one in (family.name, *family.spellings)]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
