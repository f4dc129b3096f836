"""Processes of a test, found by a path in their command line."""

from __future__ import annotations

from pathlib import Path

import psutil

_SUPERVISOR = "/supervisor.py"
_NO_ENGINES = ("/process_guard.py", "/sampler.py", "/haproxy", _SUPERVISOR)


def processes_of(home: Path) -> list[psutil.Process]:
    """Living processes whose command line names something below `home`."""
    return list(_with_command_lines(home))


def engines_of(home: Path) -> list[psutil.Process]:
    """The engines among them: neither a guard, a supervisor, a sampler nor a proxy."""
    return [
        process
        for process, argv in _with_command_lines(home).items()
        if not any(arg.endswith(_NO_ENGINES) for arg in argv)
    ]


def supervisors_of(home: Path) -> list[psutil.Process]:
    """The supervisors among them."""
    return [
        process
        for process, argv in _with_command_lines(home).items()
        if any(arg.endswith(_SUPERVISOR) for arg in argv)
    ]


def proxies_of(home: Path) -> list[psutil.Process]:
    """The proxies among them, without their guards."""
    return [process for process, argv in _with_command_lines(home).items() if argv[0].endswith("/haproxy")]


def _with_command_lines(home: Path) -> dict[psutil.Process, list[str]]:
    found = {}
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
            if process.status() != psutil.STATUS_ZOMBIE and any(str(home) in arg for arg in argv):
                found[process] = argv
        except psutil.Error:
            continue
    return found
