"""Files and standard input that describe a host or what runs there: read, refused in one line, parsed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.core.errors import WrongUseError

if TYPE_CHECKING:
    from tasks.compatibility.models import Survey
    from tasks.core.facts import Facts

_STANDARD_INPUT = "-"
_REPORT_LIMIT_BYTES = 2_000_000
"""Largest report that is read: an `nvidia-smi -q` of 16 GPUs takes 200 KB."""


class Reader:
    """Reads what the user names; standard input once."""

    def __init__(self) -> None:
        self._has_read_input = False

    def facts(self, path: Path) -> Facts:
        self._count(path)
        return read_facts(path)

    def nvidia_smi(self, path: Path) -> Survey:
        survey = self._host(path, "output of nvidia-smi")
        if survey.fault is None and not ({"driver", "gpus"} & survey.facts.model_fields_set):
            raise _nothing(path, "a driver or GPU", "paste what nvidia-smi prints, or nvidia-smi -L or -q")
        return survey

    def nvcc(self, path: Path) -> Survey:
        survey = self._host(path, "output of nvcc")
        if not survey.facts.known("nvcc"):
            raise _nothing(path, "a release of nvcc", "paste what nvcc --version prints")
        return survey

    def packages(self, path: Path) -> Survey:
        from blocks.packages.package_lists import parse_package_list
        from tasks.compatibility.reported import of_packages
        from tasks.compatibility.rules import load_tables

        packages = parse_package_list(self._text(path, "list of packages"))
        if not packages:
            raise _nothing(path, "a package with its version", "paste what pip freeze or pip list prints")
        return of_packages(packages, load_tables())

    def report(self, path: Path) -> Survey:
        from blocks.host.host_reports import parse_host_report
        from blocks.packages.package_lists import parse_packages_within
        from tasks.compatibility.reported import merge, of_packages
        from tasks.compatibility.rules import load_tables

        text = self._text(path, "report")
        survey, packages = parse_host_report(text), parse_packages_within(text)
        if survey.fault is None and not survey.facts.model_fields_set and not packages:
            raise _nothing(path, "a driver, GPU or package", "paste outputs such as that of nvidia-smi")
        return merge(of_packages(packages, load_tables()), survey) if packages else survey

    def environment(self, given: Sequence[str]) -> Survey:
        """Variables one by one, or files of them; a path without `=` is a file."""
        from blocks.docker.image_environment import parse_environment
        from tasks.compatibility.reported import of_environment

        variables: dict[str, str] = {}
        for part in given:
            name, equals, value = part.partition("=")
            if equals and name.isidentifier():
                variables[name] = value
                continue
            path = Path(part)
            found = parse_environment(self._text(path, "environment of the image"))
            if not found:
                raise _nothing(path, "a variable KEY=VALUE", "paste what docker inspect prints for the image")
            variables |= found
        return of_environment(variables)

    def _host(self, path: Path, what: str) -> Survey:
        from blocks.host.host_reports import parse_host_report

        return parse_host_report(self._text(path, what))

    def _text(self, path: Path, what: str) -> str:
        from tasks.core.given_files import decode_text, read_given, within_limit

        self._count(path)
        if str(path) == _STANDARD_INPUT:
            content = sys.stdin.buffer.read(_REPORT_LIMIT_BYTES + 1)
            name = "standard input"
            within_limit(content, name, _REPORT_LIMIT_BYTES)
        else:
            content = read_given(path, what, limit_bytes=_REPORT_LIMIT_BYTES)
            name = f"the {what} {str(path)[:200]}"
        if b"\0" in content:
            raise WrongUseError(f"{name} is not text", fix="paste what the program prints")
        return decode_text(content, name)

    def _count(self, path: Path) -> None:
        if str(path) == _STANDARD_INPUT:
            if self._has_read_input:
                raise WrongUseError("two options read standard input", fix="give one of them a file")
            self._has_read_input = True


def _nothing(path: Path, what: str, fix: str) -> WrongUseError:
    source = "standard input" if str(path) == _STANDARD_INPUT else str(path)[:200]
    return WrongUseError(f"{source} does not name {what}", fix=fix)


def read_facts(file: Path) -> Facts:
    """The facts in that file; - is standard input. Raises `WrongUseError`."""
    from tasks.core.facts import LIMIT_BYTES, parse_facts
    from tasks.core.given_files import read_given, within_limit

    if str(file) == _STANDARD_INPUT:
        source, content = "standard input", sys.stdin.buffer.read(LIMIT_BYTES + 1)
        within_limit(content, source, LIMIT_BYTES)
    else:
        fix = "make it: slipway survey --json; - reads standard input"
        source, content = str(file), read_given(file, "facts file", limit_bytes=LIMIT_BYTES, fix=fix)
    return parse_facts(content, source=source)
