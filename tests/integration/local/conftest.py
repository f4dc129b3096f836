"""One server and worker for this folder, whose tests run in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from local_place import LocalPlace, local_place
from uncovered import uncovered


@pytest.fixture(scope="session")
def place() -> Iterator[LocalPlace]:
    with contextlib.ExitStack() as stack:
        with uncovered():
            made = stack.enter_context(local_place())
        yield made
