"""The spec's own arguments for an engine: which it may have, and how they are written. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

from tasks.core.allowed import Kind, Program
from tasks.core.engine_options import EngineArg
from tasks.core.errors import SpecError
from tasks.core.spec_kinds import EngineKind
from tasks.engines.card import EngineCard, read_card

_OPTION = re.compile(r"(?<![\w-])--([A-Za-z0-9][A-Za-z0-9_.-]*)")
_NEGATED = "no-"


def check_arguments(kind: EngineKind, arguments: Mapping[str, EngineArg]) -> None:
    """Raise `SpecError` for an argument that Slipway sets itself, whatever its spelling, that its worker for the
    engine does not know, or whose values the engine would take for others."""
    card = read_card(kind)
    for name, value in arguments.items():
        _check_list(card, name, value)
        root = _root(name)
        key = card.owned.get(root, card.owned.get(root.removeprefix(_NEGATED)))
        if key is not None:
            raise _owned(card, name, key)
    if card.arguments:
        refuse_unknown(card, arguments, set(card.arguments))


def refuse_unknown(
    card: EngineCard, arguments: Iterable[str], known: set[str], version: str | None = None
) -> None:
    """Raise `SpecError` for an argument that is not among those that the engine's release knows."""
    for name in arguments:
        if known.isdisjoint({name, _root(name)}):
            release = f"{card.title} {version or ''}".strip()
            near = difflib.get_close_matches(_root(name), sorted(known), n=1, cutoff=0.6)
            raise SpecError(
                f"engine_args.{name}: {release} has no argument --{name}",
                fix=f"did you mean {near[0]!r}?"
                if near
                else f"remove it, or look at the help of {card.title}",
            )


def options_in(text: str) -> set[str]:
    """The long options in a program's help, without dashes in front."""
    return {name.rstrip(".-").replace("_", "-") for name in _OPTION.findall(text)}


def render(card: EngineCard, arguments: Mapping[str, EngineArg]) -> tuple[str, ...]:
    """The arguments as the engine's command line takes them.

    A value is tied to its name by `=`: as a word of its own it could be read as another argument.
    """
    return tuple(word for name, value in arguments.items() for word in _words(card, name, value))


def _spelled(card: EngineCard, name: str) -> str:
    """The option of that name, as the engine writes it; keys behind a dot stay as they are."""
    root, dot, below = name.partition(".")
    return f"--{root.replace('-', '_') if card.underscores else root}{dot}{below}"


def programs_of_arguments(
    kind: EngineKind, arguments: Iterable[str], variables: Iterable[str], prefix: str = ""
) -> list[Program]:
    """What could choose code for the engine to run: any variable, and any argument of an engine whose list of them is
    not Slipway's own."""
    held = () if read_card(kind).arguments else tuple(arguments)
    return [
        *(Program(key=f"{prefix}engine_args", kind=Kind.ARGUMENT, value=name) for name in held),
        *(Program(key=f"{prefix}engine_env", kind=Kind.VARIABLE, value=name) for name in variables),
    ]


def _words(card: EngineCard, name: str, value: EngineArg) -> Iterator[str]:
    option = _spelled(card, name)
    if value is True:
        yield option
    elif not isinstance(value, tuple):
        yield f"{option}={value}"
    elif _in_one(card, name):
        yield option
        yield from map(str, value)
    else:
        yield from (f"{option}={one}" for one in value)


def _check_list(card: EngineCard, name: str, value: EngineArg) -> None:
    if not isinstance(value, tuple) or not _in_one(card, name):
        return
    wrong = next((one for one in value if isinstance(one, str) and one.startswith("-")), None)
    if wrong is not None:
        raise SpecError(
            f"engine_args.{name}: {card.title} reads the value {wrong!r} as another argument",
            fix="leave it out, or give a single value instead of a list",
        )


def _in_one(card: EngineCard, name: str) -> bool:
    """Whether a list's values follow its name, which is given once."""
    return card.lists == "spaces" and name not in card.repeated


def _root(name: str) -> str:
    """The option that a name with a dot sets a key of."""
    return name.partition(".")[0]


def _owned(card: EngineCard, name: str, key: str) -> SpecError:
    what = f"engine_args.{name}: Slipway sets --{name} of {card.title} itself"
    if " " in key:
        return SpecError(
            f"engine_args.{name}: {card.title} is not given --{name} by a spec: {key}", fix="remove it"
        )
    return SpecError(what, fix=f"set {key} instead")
