"""Types of arguments and options that hold for every verb: paths that can be, and numbers with both bounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

LONGEST_S = 365 * 86_400.0
LARGEST_BYTES = 2**60
LARGEST_COUNT = 1_000_000


class GivenPath(click.Path):
    """A path, with `~` replaced. Whether something is there is for the verb to say."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, as it was given but for the home."""
        from tasks.core.errors import WrongUseError
        from tasks.core.given_files import check_path, expand_user

        try:
            check_path(str(value))
            return super().convert(expand_user(Path(value)), param, ctx)
        except WrongUseError as error:
            self.fail(str(error), param, ctx)
        except ValueError as error:
            self.fail(f"{str(value)[:80]!r}: {error}", param, ctx)


class Number(click.FloatRange):
    """A finite number between two bounds."""

    def __init__(self, min: float, max: float, *, min_open: bool = False, max_open: bool = False) -> None:
        super().__init__(min, max, min_open=min_open, max_open=max_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. `nan` is neither below nor above a bound, so that ranges let it pass."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number
