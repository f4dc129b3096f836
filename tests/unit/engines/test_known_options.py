"""What cards and commands say of an engine's options, against the options that its release really has.

`tests/golden/engine_options` holds them, each file with its source; `tests/support/engine_options.py` makes one of an
installed engine's help.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from engine_golden import pages
from engine_options import options_of

from tasks.engines.base import Engine
from tasks.engines.catalogue import deployable_engines

OPTIONS = Path(__file__).parents[2] / "golden" / "engine_options"
OWN_SERVERS = {"llama.cpp", "transformers"}
"""Their cards list all that Slipway's workers read."""

KEPT = {file.stem: json.loads(file.read_text()) for file in OPTIONS.iterdir()}
WORKERS = {"tensorrt-llm": {"model", "alias", "program", "dtype"}}
"""What a worker reads, and does not hand on."""

ELSEWHERE = {"model-tag", "version", "task", "override-pooler-config"}
"""A word without a name, an option of the program that `serve` is a part of, and options of earlier releases."""


def engine_of(kind: str) -> Engine:
    return next(engine for engine in deployable_engines() if engine.kind == kind)


def test_every_engine_with_a_server_of_its_own_has_its_options_recorded() -> None:
    assert set(KEPT) == {str(engine.kind) for engine in deployable_engines()} - OWN_SERVERS


@pytest.mark.parametrize("kind", sorted(KEPT))
def test_the_options_are_those_of_the_pinned_release(kind: str) -> None:
    assert KEPT[kind]["version"] == engine_of(kind).card.version
    assert KEPT[kind]["source"]
    assert KEPT[kind]["how"]


@pytest.mark.parametrize("kind", sorted(KEPT))
def test_commands_have_no_option_that_the_release_lacks(kind: str) -> None:
    page: dict[str, Any] = json.loads(pages()[f"{kind}.json"])
    used = {
        re.split("[=.]", word)[0].removeprefix("--")
        for command in page.values()
        for word in command["argv"]
        if word.startswith("--")
    }
    assert used - WORKERS.get(kind, set()) <= set(KEPT[kind]["options"])


@pytest.mark.parametrize("kind", sorted(KEPT))
def test_cards_name_no_option_that_the_release_lacks(kind: str) -> None:
    card = engine_of(kind).card
    known = {name.replace("_", "-") for name in KEPT[kind]["options"]} | WORKERS.get(kind, set()) | ELSEWHERE
    loaders = {word for row in card.loader for word in row.arguments if word.startswith("--")}
    named = {*card.owned, *card.repeated, *(word.removeprefix("--") for word in loaders)}
    assert named <= known


def test_options_are_read_from_the_margin_of_a_help() -> None:
    text = "usage: x [--no]\n\n  --one, -o ONE  text with --two in it\n  --three_a {x,y}, --three\n                        more\n"
    assert options_of(text) == ["o", "one", "three", "three_a"]
