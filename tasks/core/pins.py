"""Exact versions in a list of requirements or a lock."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

_NAME = r"[ \t]*([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?"
_PIN = re.compile(rf"^{_NAME}==([^\s;\\]+)", re.MULTILINE)
_WHEEL = re.compile(rf"^{_NAME}[ \t]*@[ \t]*(\S+\.whl)(?=[\s#]|$)", re.MULTILINE)


def pinned_versions(text: str) -> dict[str, str]:
    """Version by canonical name of each line `name==version` or `name @ address of a wheel`; other lines are
    ignored."""
    wheels = {name: version for name, url in _WHEEL.findall(text) if (version := wheel_version(url))}
    return {str(canonicalize_name(name)): version for name, version in (*_PIN.findall(text), *wheels.items())}


def wheel_version(url: str) -> str | None:
    """The version that the name of a wheel gives, its local part too; None for another file."""
    try:
        return str(parse_wheel_filename(file_name(url))[1])
    except InvalidWheelFilename:
        return None


def file_name(url: str) -> str:
    """The last part of a URL; empty if it is not one."""
    try:
        return unquote(urlsplit(url).path).rpartition("/")[2]
    except ValueError:
        return ""
