"""Commands in documents, run as a reader would: `console` blocks with `$ command` and what it prints.

In the expected output `…` stands for anything within a line, and a line of its own `…` for any lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """One command and the lines that it should print."""

    command: str
    expected: tuple[str, ...]


def examples_in(path: Path) -> list[Example]:
    """All commands of a document, in order."""
    found = []
    for block in _BLOCK.findall(path.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *expected = part.rstrip().splitlines()
            found.append(Example(command, tuple(expected)))
    return found


def pattern_of(expected: tuple[str, ...]) -> re.Pattern[str]:
    """What the whole output must match. Runs of spaces count as one: tables adapt to their content."""
    lines = []
    for line in expected:
        if line.strip() == "…":
            lines.append(r"(?:.*\n)*?")
        else:
            words = re.escape(_squeeze(line)).replace("…", ".*")
            lines.append(words + r"\n")
    return re.compile("".join(lines))


def normalise(output: str) -> str:
    """Output as it is compared: spaces squeezed, empty lines and trailing spaces dropped."""
    lines = (_squeeze(line) for line in output.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def _squeeze(line: str) -> str:
    return re.sub(r"\s+", " ", line).strip()
