"""Child processes that coverage does not follow: it makes a command half as long again, and a Prefect server, too.

For what takes minutes, and whose code other tests run in this process or in commands of their own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_FOLLOWS = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
"""What coverage looks for as a Python process starts."""


@contextlib.contextmanager
def uncovered() -> Iterator[None]:
    """Processes that are started in the block, and theirs, are not followed."""
    taken = {name: os.environ.pop(name) for name in _FOLLOWS if name in os.environ}
    try:
        yield
    finally:
        os.environ |= taken
