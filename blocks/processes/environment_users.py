"""Processes that use a folder."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def running_below(folder: Path) -> list[int]:
    """Ids of the processes whose program, or one of whose arguments, is `folder` or is below it."""
    found = []
    for process in psutil.process_iter(["cmdline", "exe"]):
        words = [process.info["exe"] or "", *(process.info["cmdline"] or [])]
        if any(_names(word, folder) for word in words):
            found.append(process.pid)
    return found


def _names(word: str, folder: Path) -> bool:
    """Whether it is a path in the folder, in any spelling, or an option with one: `--model=PATH`."""
    paths = (word, word.partition("=")[2])
    return any(_is_in(path, folder) for path in paths if path.startswith("/") and folder.name in path)


def _is_in(path: str, folder: Path) -> bool:
    """Links inside the folder are not followed: an environment's programs are often links that lead out of it."""
    here = Path(path)
    real = os.path.realpath(folder)
    return any(os.path.realpath(one) == real for one in (here, *here.parents) if one.name == folder.name)
