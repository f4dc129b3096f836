"""Exact versions in a list of requirements or a lock."""

from __future__ import annotations

import re

from packaging.utils import canonicalize_name

_PIN = re.compile(r"^[ \t]*([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)


def pinned_versions(text: str) -> dict[str, str]:
    """Version by canonical name of each line `name==version`; other lines are ignored."""
    return {str(canonicalize_name(name)): version for name, version in _PIN.findall(text)}
