"""What an engine makes of answers: tool calls, reasoning, and JSON that follows a schema. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from tasks.core.errors import SpecError
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import EngineKind
from tasks.core.spec_sections import Serving
from tasks.engines.card import EngineCard, ParserRow, read_card

OFFERED = ("names", "tool_parser", "reasoning_parser", "structured_output")
"""Fields of a `ServingConfig` that are the spec's own (`serving`), whatever was measured."""

_KEYS = OFFERED[1:]


def offered(serving: Serving) -> dict[str, Any]:
    """These fields, as the spec has them."""
    return {name: getattr(serving, name) for name in OFFERED}


def check_parsers(
    kind: EngineKind, serving: Serving, engine_args: Iterable[str], version: str | None = None
) -> None:
    """Raise `SpecError` for a parser that the engine does not have, or that `engine_args` set as well.

    The names of a release other than the card's are not known: that engine refuses a wrong one at its start.
    """
    card = read_card(kind)
    odd = next((name for name in serving.names if ":" in name), None)
    if odd is not None and not card.colon_in_names:
        raise SpecError(
            f"serving.names: {card.title} takes what follows the colon in {odd!r} for an adapter",
            fix="use names without a colon",
        )
    for key in _KEYS:
        name = getattr(serving, key)
        if name is None:
            continue
        row = card.find_parser(key)
        if row is None:
            raise SpecError(
                f"serving.{key}: {card.title} has no such setting",
                fix=f"remove it, or choose {_engines(key)}",
            )
        _check_name(card, row, name, version)
        twice = {one.removeprefix("--") for one in row.arguments if one.startswith("--")}.intersection(
            engine_args
        )
        if twice:
            raise SpecError(
                f"serving.{key} sets --{min(twice)}, which engine_args set as well", fix="give it once"
            )


def parser_arguments(card: EngineCard, config: ServingConfig) -> tuple[str, ...]:
    """What the command line takes for the configuration's parsers."""
    rows = ((card.find_parser(key), getattr(config, key)) for key in _KEYS)
    return tuple(word for row, name in rows if row and name for word in row.choosing(name))


def _check_name(card: EngineCard, row: ParserRow, name: str, version: str | None) -> None:
    if name in row.names or version not in (None, card.version):
        return
    near = difflib.get_close_matches(name, row.names, n=1)
    listed = ", ".join(row.names)
    raise SpecError(
        f"serving.{row.key}: {card.title} {card.version} has no {name!r}",
        fix=f"did you mean {near[0]!r}?" if near else f"choose one of {listed}",
    )


def _engines(key: str) -> str:
    return " or ".join(kind for kind in EngineKind if read_card(kind).find_parser(key)) or "another engine"
