"""Lists of packages as people paste them: pip freeze, pip and uv pip list, conda list, torch's collect_env. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from tasks.core.facts import version_or_none

_NAME = r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)"
_PIN = re.compile(rf"^(?:\[(?:pip3?|conda)\]\s+)?{_NAME}(?:\[[^\]]*\])?\s*===?\s*([^\s;\\#]+)")
_ADDRESS = re.compile(rf"^{_NAME}(?:\[[^\]]*\])? @ (\S+)")
_COLUMNS = re.compile(rf"^(?:\[(?:pip3?|conda)\]\s+)?{_NAME}\s+v?([0-9][A-Za-z0-9.+!_-]*)(?:\s+(\S.*))?$")
_OLD_LIST = re.compile(rf"^{_NAME} \(([0-9][^,)\s]*)[^)]*\)$")
_HEAD = re.compile(r"^(?:Package\s+Version|# Name\s+Version)")
_RULE = re.compile(r"^-+ +-+")
_COLLECTED = re.compile(r"^\[(?:pip3?|conda)\] ")
_CONDA_CUDA = re.compile(r"cuda([0-9]{2})\.?([0-9])")
_CONDA_NAMES = {"pytorch": "torch", "pytorch-cuda": "cuda-version", "libtorch": "torch"}
"""What conda calls packages that PyPI calls otherwise."""


def parse_package_list(text: str) -> dict[str, str]:
    """Version by canonical name. Lines that name no version, such as editable installs, are left out."""
    found = {str(canonicalize_name(name)): version for name, version in _entries(text)}
    return {name: version for name, version in found.items() if version_or_none(version)}


def _entries(text: str) -> Iterator[tuple[str, str]]:
    if text.lstrip().startswith(("[{", "[\n", "[ ")):
        yield from _of_json(text)
        return
    for line in text.splitlines():
        entry = _of_line(line.strip())
        if entry is not None:
            yield entry


def _of_json(text: str) -> Iterator[tuple[str, str]]:
    """`pip list --format json` and `conda list --json`."""
    try:
        rows: Any = json.loads(text)
    except (ValueError, RecursionError):
        return
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict):
            name, version = str(row.get("name", "")), str(row.get("version", ""))
            yield _conda(name, version, f"{row.get('build_string', '')} {row.get('channel', '')}")


def _of_line(line: str) -> tuple[str, str] | None:
    if pin := _PIN.match(line):
        return pin[1], pin[2]
    if address := _ADDRESS.match(line):
        return _of_wheel(address[1], address[2])
    if columns := _COLUMNS.match(line):
        return _conda(columns[1], columns[2], columns[3] or "")
    old = _OLD_LIST.match(line)
    return (old[1], old[2]) if old else None


def _of_wheel(name: str, address: str) -> tuple[str, str] | None:
    """The version in the name of the wheel that the address ends with."""
    file = unquote(address.partition("#")[0].rpartition("/")[2])
    try:
        return name, str(parse_wheel_filename(file)[1])
    except InvalidWheelFilename:
        return None


def _conda(name: str, version: str, rest: str) -> tuple[str, str]:
    """conda's torch names its CUDA in the build: `py3.11_cuda12.4_cudnn9.1.0_0`; one without is a CPU build."""
    known = _CONDA_NAMES.get(name.lower(), name)
    if known == "torch" and name.lower() != "torch" and "+" not in version:
        cuda = _CONDA_CUDA.search(rest)
        if cuda or "cpu" in rest:
            return known, f"{version}+{f'cu{cuda[1]}{cuda[2]}' if cuda else 'cpu'}"
    return known, version


def parse_packages_within(text: str) -> dict[str, str]:
    """Packages in a text that is mostly about other things: pins, and lists under their own head."""
    kept: list[str] = []
    in_list = False
    for line in text.splitlines():
        line = line.strip()
        in_list = bool(_HEAD.match(line)) or (in_list and bool(_COLUMNS.match(line) or _RULE.match(line)))
        if in_list or _COLLECTED.match(line) or _PIN.match(line):
            kept.append(line)
    return parse_package_list("\n".join(kept))
