"""The environment of a tool that is not an engine: locked and built like an engine's, once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from blocks.engine.torch_backend import decide_backend
from blocks.engine.trial import EnvironmentTrial
from blocks.host.host import ThisHost
from blocks.packages.uv import Uv
from tasks.core.errors import WrongUseError
from tasks.core.settings import Settings
from tasks.core.spec_sections import Environment
from tasks.environment import apply as environments
from tasks.environment.models import EnvironmentRequest, Locked, LockRequest, Refusal
from tasks.environment.plan import make_lock_request


def tool_python(
    requirements: Sequence[str], settings: Settings, *, name: str, torch_backend: str, install: bool
) -> Path | None:
    """The Python of the tool's environment, which `install` builds if needed; None without an environment.

    Raises what `lock_tool` and the environment stage raise.
    """
    if (
        not install
        and not (settings.locks / environments.lock_file(_request(requirements, torch_backend))).exists()
    ):
        return None
    locked = lock_tool(requirements, settings, name=name, torch_backend=torch_backend)
    return build_tool(locked, settings) if install or is_built(locked, settings) else None


def lock_tool(requirements: Sequence[str], settings: Settings, *, name: str, torch_backend: str) -> Locked:
    """The existing lock, or a new one.

    Torch comes in the build `torch_backend` names; from pip's own folder of wheels if it has one. Raises what the
    environment stage raises, and `WrongUseError` if the requirements do not go together.
    """
    locked = environments.lock(_request(requirements, torch_backend), _tool(), settings)
    if isinstance(locked, Refusal):
        raise WrongUseError(f"{name} cannot be installed: {locked.reason}")
    return locked


def build_tool(locked: Locked, settings: Settings) -> Path:
    """The Python of the existing environment, or of a new one."""
    return environments.build(locked, _tool(), EnvironmentTrial(), settings).python_path


def is_built(locked: Locked, settings: Settings) -> bool:
    """Whether the environment exists."""
    return environments.environment_folder(locked, settings).exists()


def _tool() -> Uv:
    return Uv(find_links=_links())


def _links() -> str | None:
    return os.environ.get("PIP_FIND_LINKS")


def _request(requirements: Sequence[str], torch_backend: str) -> LockRequest:
    environment = Environment(
        torch_backend=None if _links() else torch_backend, requirements=tuple(requirements)
    )
    decided = decide_backend(EnvironmentRequest(environment=environment), ThisHost()).environment
    return make_lock_request(requirements, _tool().platform, decided)
