"""Processes that run out of a folder."""

from __future__ import annotations

from pathlib import Path

import psutil


def running_below(folder: Path) -> list[int]:
    """Ids of the processes whose program or one of whose arguments lies below `folder`."""
    inside = f"{folder}/"
    found = []
    for process in psutil.process_iter(["cmdline", "exe"]):
        words = [process.info["exe"] or "", *(process.info["cmdline"] or [])]
        if any(word.startswith(inside) for word in words):
            found.append(process.pid)
    return found
