"""The mark of runs that work on one service."""

from __future__ import annotations

import platform


def service_tag(name: str) -> str:
    """Tag of all runs that work on one service of this host."""
    return f"service:{name}@{platform.node()}"
