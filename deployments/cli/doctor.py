"""`slipway doctor`: what is installed here, what is missing, and what it would be for."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from datetime import date

import click

from deployments.cli.main import print_json
from deployments.cli.show import print_table
from tasks.core.errors import MissingToolError, SlipwayError
from tasks.core.settings import Settings


@dataclass(frozen=True)
class Diagnosis:
    """One thing: whether it is there, what was found, what it is for, how to get it."""

    thing: str
    there: bool
    found: str
    needed_for: str
    fix: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(as_json: bool) -> None:
    """Say what is installed here and what is missing. Only Python, uv and HAProxy are required."""
    diagnoses = diagnose(Settings.load())
    if as_json:
        print_json({"checks": [asdict(diagnosis) for diagnosis in diagnoses]})
    else:
        _show(diagnoses)
    if not all(found.there for found in diagnoses if found.needed_for == "everything"):
        sys.exit(1)


def diagnose(settings: Settings) -> list[Diagnosis]:
    """Look at this machine; changes nothing."""
    return [
        _python(),
        _program("uv", "everything", "run `make setup` again"),
        _home(settings),
        _server(settings),
        _docker(),
        _haproxy(settings),
        _program("fio", "measuring the disk", "apt-get install fio"),
        _nvidia(),
        fact_tables(date.today()),
    ]


def _python() -> Diagnosis:
    fine = sys.version_info >= (3, 11)
    return Diagnosis("python", fine, platform.python_version(), "everything", "install Python 3.11 or newer")


def _program(name: str, needed_for: str, fix: str) -> Diagnosis:
    from blocks.processes.process import find_tool

    try:
        return Diagnosis(name, True, find_tool(name, install=fix), needed_for, fix)
    except MissingToolError as error:
        return Diagnosis(name, False, error.what, needed_for, fix)


def _haproxy(settings: Settings) -> Diagnosis:
    from blocks.services.haproxy import find_haproxy

    try:
        return Diagnosis("haproxy", True, str(find_haproxy(settings)), "everything", "")
    except MissingToolError as error:
        return Diagnosis("haproxy", False, error.what, "everything", error.fix or "")


def _home(settings: Settings) -> Diagnosis:
    folder = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free_gb = shutil.disk_usage(folder).free / 1e9
    found = f"{settings.home}, {free_gb:.1f} GB free"
    return Diagnosis("SLIPWAY_HOME", free_gb > 1, found, "models and environments", "set it to a larger disk")


def _server(settings: Settings) -> Diagnosis:
    from deployments.local_state import read_local_state

    state = read_local_state(settings)
    there = state is not None and state.alive
    found = state.api_url.removesuffix("/api") if state and there else "does not run"
    return Diagnosis("local server", there, found, "schedules, events and the UI", "slipway up")


def _docker() -> Diagnosis:
    from blocks.docker.docker_engine import DockerEngine

    fix = "install Docker and start it"
    try:
        with DockerEngine.connect(timeout_s=5) as engine:
            version = engine.version()
    except SlipwayError as error:
        return Diagnosis("docker", False, error.what, "target docker", error.fix or fix)
    return Diagnosis("docker", True, f"engine {version}", "target docker", fix)


def _nvidia() -> Diagnosis:
    from blocks.host.nvml import read_nvml

    reading = read_nvml()
    gpus = ", ".join(gpu.name for gpu in reading.gpus)
    found = f"driver {reading.driver}: {gpus}" if reading.driver else "no driver: serving on the CPU"
    return Diagnosis(
        "NVIDIA driver", bool(reading.driver), found, "serving on GPUs", "install NVIDIA's driver"
    )


def fact_tables(today: date) -> Diagnosis:
    """Until when the tables behind the compatibility verdict were read; a verdict does not know what came after."""
    from tasks.compatibility.fact_tables import FRESH_DAYS, last_checked_on, read_rows, stale

    tables = read_rows()
    old = stale(tables, today)
    if old:
        ages = ", ".join(f"{table} until {day}" for table, day in sorted(old.items(), key=lambda one: one[1]))
        found = f"read more than {FRESH_DAYS} days ago: {ages}"
    else:
        read = min(day for rows in tables.values() if (day := last_checked_on(rows)))
        found = f"{len(tables)} tables, all read until {read} or later"
    fix = "install a newer Slipway; to renew a table yourself: docs/facts.md"
    return Diagnosis("fact tables", not old, found, "judging new releases", fix)


def _show(diagnoses: list[Diagnosis]) -> None:
    marks = {True: "[green]yes[/green]", False: "[yellow]no[/yellow]"}
    rows = [
        (marks[found.there], found.thing, found.found, found.needed_for, "" if found.there else found.fix)
        for found in diagnoses
    ]
    print_table(("", "thing", "found", "needed for", "way out"), rows, whole=("", "thing", "needed for"))
