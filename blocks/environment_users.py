"""Processes that use a folder."""

from __future__ import annotations

from pathlib import Path

import psutil


def running_below(folder: Path) -> list[int]:
    """Ids of the processes whose program, or one of whose arguments, is `folder` or lies below it."""
    found = []
    for process in psutil.process_iter(["cmdline", "exe"]):
        words = [process.info["exe"] or "", *(process.info["cmdline"] or [])]
        if any(_names(word, folder) for word in words):
            found.append(process.pid)
    return found


def _names(word: str, folder: Path) -> bool:
    """Whether it is a path in the folder, or an option with one: `--model=PATH`."""
    paths = (word, word.partition("=")[2])
    return any(path == str(folder) or path.startswith(f"{folder}/") for path in paths)
