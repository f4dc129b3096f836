"""Types of arguments and options for all verbs: possible paths, and numbers with both bounds."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import click

_DIGITS = re.compile(r"[-+]?[0-9]{1,40}")
LONGEST_S = 365 * 86_400.0
LARGEST_BYTES = 2**60
LARGEST_COUNT = 1_000_000


class GivenPath(click.Path):
    """A path, with `~` replaced. The verb decides whether it must exist."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path as given, except for `~`."""
        from tasks.core.errors import WrongUseError
        from tasks.core.given_files import check_accessible, check_path, expand_user

        try:
            check_path(str(value))
            path = expand_user(Path(value))
            check_accessible(path)
            return super().convert(path, param, ctx)
        except WrongUseError as error:
            self.fail(str(error), param, ctx)
        except ValueError as error:
            self.fail(f"{str(value)[:80]!r}: {error}", param, ctx)


class Text(click.ParamType[str]):
    """A name or an address: one printable line of limited length."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as given."""
        from tasks.core.given_files import LONGEST_TEXT

        text = str(value)
        if len(text) > LONGEST_TEXT or not text.isprintable():
            self.fail(f"{text[:80]!r} is too long, or contains unprintable characters.", param, ctx)
        return text


class Count(click.IntRange):
    """A whole number between two bounds, in plain digits."""

    name = "integer"

    def __init__(self, min: int, max: int) -> None:
        super().__init__(min, max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Python's `int` also accepts `1_000`, digits of other scripts, and thousands of digits."""
        if isinstance(value, str) and not _DIGITS.fullmatch(value):
            self.fail(f"{value[:40]!r} is not a valid integer.", param, ctx)
        return super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A finite number between two bounds."""

    def __init__(self, min: float, max: float, *, min_open: bool = False, max_open: bool = False) -> None:
        super().__init__(min, max, min_open=min_open, max_open=max_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. `nan` is neither below nor above a bound, so click's ranges would accept it."""
        if isinstance(value, str) and not (value.isascii() and len(value) <= 40 and "_" not in value):
            self.fail(f"{value[:40]!r} is not a valid number.", param, ctx)
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number
