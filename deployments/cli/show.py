"""Output of verbs for people: as wide as the terminal, and unfolded without one. Colour on terminals only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod, RenderableType

WIDTH_WITHOUT_TERMINAL = 2000
"""Width for a pipe or a file: effectively unlimited, because programs read whole lines."""

_READABLE = 24
"""Fewest columns in which folded text is still readable."""
_GAP = 3

_COLOURS = {
    "red": (
        "block",
        "blocked",
        "corrupt",
        "conflicting",
        "unhealthy",
        "confirmed",
        "refused",
        "rolled_back",
        "down",
        "fault",
    ),
    "yellow": ("warn", "slow", "flagged", "degraded", "suspected", "moved", "starting", "cancelled"),
    "magenta": ("unknown",),
    "cyan": ("info",),
    "green": ("pass", "sound", "verified", "chosen", "serving", "healthy", "up", "current"),
}
_COLOUR_OF = {word: colour for colour, words in _COLOURS.items() for word in words}


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print rows under their columns; cells may contain rich's markup.

    Columns named in `right` are right-aligned figures. Those and the ones named in `whole` are never folded. If the
    terminal is too narrow, the `spare` ones are omitted in order, and named below.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    kept = {*right, *whole}
    cells = [list(row) for row in rows]
    left_out = _too_wide(columns, cells, kept, spare, console().width)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        if column not in left_out:
            justify: JustifyMethod = "right" if column in right else "left"
            table.add_column(column, justify=justify, no_wrap=column in kept, overflow="fold")
    for row in cells:
        table.add_row(*(cell for column, cell in zip(columns, row, strict=True) if column not in left_out))
    show(table)
    if left_out:
        click.echo(f"omitted: {', '.join(left_out)} (a wider terminal or --json shows them)")


def _too_wide(
    columns: Sequence[str], rows: Sequence[Sequence[str]], kept: set[str], spare: Sequence[str], width: int
) -> list[str]:
    """The columns to omit so that the rest is readable."""
    from rich.text import Text

    needed = {}
    for number, column in enumerate(columns):
        widest = max([len(column), *(Text.from_markup(row[number]).cell_len for row in rows)])
        needed[column] = widest if column in kept else min(widest, _READABLE)
    left_out: list[str] = []
    for column in spare:
        if sum(needed.values()) + _GAP * len(needed) <= width:
            break
        left_out.append(column)
        del needed[column]
    return left_out


def print_facts(rows: Iterable[tuple[str, str]]) -> None:
    """Print one name and value per line, with aligned values; cells may contain rich's markup."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    show(table)


def show(what: RenderableType) -> None:
    """Print without the spaces that rich puts around a table and after each line."""
    out = console()
    with out.capture() as capture:
        out.print(what)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    click.echo("\n".join(lines).strip("\n"), color=True)


def echo_log(text: str | None, *, err: bool = False) -> None:
    """Print lines of a log, each marked as such."""
    for line in (text or "").splitlines():
        click.echo(f"  | {line}", err=err)


def plain(text: str) -> str:
    """Text as a cell that contains no markup."""
    from rich.markup import escape

    return escape(text)


def coloured(verdict: str) -> str:
    """A verdict, state or severity as markup, in its standard colour."""
    colour = colour_of(verdict)
    words = verdict.replace("_", " ")
    return f"[{colour}]{words}[/{colour}]" if colour else words


def colour_of(verdict: str) -> str | None:
    """Red for no or failed, yellow for a warning, green for good; None for a word without a colour."""
    return _COLOUR_OF.get(verdict)


def console(*, stderr: bool = False) -> Console:
    """A console on standard output, or on standard error."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH_WITHOUT_TERMINAL
    return Console(stderr=stderr, width=width, highlight=False, emoji=False)
