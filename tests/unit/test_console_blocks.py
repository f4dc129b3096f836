"""The reader of console blocks itself: it must be able to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from console_blocks import Example, examples_in, normalise, pattern_of


def test_commands_and_their_output_are_found_in_order(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("x\n```console\n$ one --a\nout 1\nout 2\n$ two\n```\n```python\n$ not this\n```\n")
    assert examples_in(path) == [Example("one --a", ("out 1", "out 2")), Example("two", ())]


@pytest.mark.parametrize(
    ("expected", "output", "holds"),
    [
        (("a … c", "d"), "a b  c\n\nd\n", True),
        (("a", "…", "z"), "a\nb\nc\nz\n", True),
        (("a", "…", "z"), "a\nz\n", True),
        (("a",), "a\nb\n", False),
        (("a (b)",), "a b\n", False),
    ],
)
def test_an_ellipsis_stands_for_anything_and_nothing_else_does(
    expected: tuple[str, ...], output: str, holds: bool
) -> None:
    assert bool(pattern_of(expected).fullmatch(normalise(output))) is holds
