"""What a run of a deployment may start: only programs on the administrator's list."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prefect.context import FlowRunContext

from tasks.core.allowed import (
    FILE,
    Allowed,
    Kind,
    Program,
    check_allowed,
    programs_of_code,
    programs_of_environment,
    programs_of_rollout,
    programs_of_serving,
)
from tasks.core.given_files import TEXT_LIMIT_BYTES, absolute_path, decode_text, read_given, without_links
from tasks.core.settings import Settings
from tasks.core.sources import split_variant
from tasks.core.spec import DeploySpec
from tasks.engines.arguments import programs_of_arguments

_OWN = ("environments", "locks")
"""Folders of the home whose programs Slipway itself installed."""


def is_asked_by_api() -> bool:
    """Whether this run itself belongs to a deployment: started in the UI, by a schedule, an event or a program.

    Flows that it calls do not count, because they run what it decided. Neither do flows called by the command.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run is not None and run.deployment_id is not None


def check_programs(programs: Iterable[Program], own: Iterable[str] = _OWN) -> None:
    """Raise `WrongUseError` if this run was requested through the API and would start something not on the list.

    `own` are the folders of the home that need not be on it.
    """
    if not is_asked_by_api():
        return
    settings = Settings.load()
    file = settings.home / FILE
    listed = _read_list(file) if file.exists() else Allowed()
    folders = tuple(
        without_links(folder) for folder in (*(settings.home / name for name in own), *listed.folders)
    )
    allowed = listed.model_copy(update={"folders": folders})
    check_allowed([_without_links(program) for program in programs], allowed, str(file))


def python_in(path: Path, key: str) -> Program:
    """The environment of a Python. Its own name may be a link to the system's.

    Raises `WrongUseError` for an impossible path.
    """
    return Program(key=key, kind=Kind.FOLDER, value=str(absolute_path(path).parent))


def programs_of_spec(spec: DeploySpec) -> list[Program]:
    """What a deploy of that spec would run."""
    environment = programs_of_environment(spec.environment, "environment")
    own = programs_of_arguments(spec.engine, spec.engine_args, spec.engine_env)
    rollout = programs_of_rollout(spec.rollout, spec.target, "rollout")
    serving = programs_of_serving(spec.serving, "serving")
    code = programs_of_code(spec.serving, split_variant(spec.model)[0], "serving")
    return [*environment, *own, *serving, *code, *rollout]


def _read_list(file: Path) -> Allowed:
    content = read_given(file, "list", limit_bytes=TEXT_LIMIT_BYTES)
    return Allowed.parse(decode_text(content, str(file)), str(file))


def _without_links(program: Program) -> Program:
    if program.kind is not Kind.FOLDER:
        return program
    return program.model_copy(update={"value": str(without_links(Path(program.value)))})
