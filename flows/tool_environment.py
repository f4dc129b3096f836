"""The environment of a tool that is no engine: locked and built as engines' are, once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from blocks.environment_trial import EnvironmentTrial
from blocks.host import ThisHost
from blocks.uv import Uv
from flows.torch_backend import decide_backend
from tasks.core.errors import WrongUseError
from tasks.core.settings import Settings
from tasks.core.spec import Environment
from tasks.environment import apply as environments
from tasks.environment.models import EnvironmentRequest, LockRequest, Refusal
from tasks.environment.plan import make_lock_request


def tool_python(
    requirements: Sequence[str], settings: Settings, *, name: str, torch_backend: str, install: bool
) -> Path | None:
    """The Python of the tool's environment: the one that stands, or a new one with `install`; else None.

    Torch comes in the build `torch_backend` names; from pip's own folder of wheels where it has one. Raises what the
    environment stage raises, and `WrongUseError` if the requirements do not go together.
    """
    links = os.environ.get("PIP_FIND_LINKS")
    tool = Uv(find_links=links)
    asked = _lock_request(requirements, tool, None if links else torch_backend)
    if not install and not (settings.locks / environments.lock_file(asked)).exists():
        return None
    locked = environments.lock(asked, tool, settings)
    if isinstance(locked, Refusal):
        raise WrongUseError(f"{name} cannot be installed: {locked.reason}")
    if not install and not environments.environment_folder(locked, settings).exists():
        return None
    return environments.build(locked, tool, EnvironmentTrial(), settings).python_path


def _lock_request(requirements: Sequence[str], tool: Uv, torch_backend: str | None) -> LockRequest:
    environment = Environment(torch_backend=torch_backend, requirements=tuple(requirements))
    decided = decide_backend(EnvironmentRequest(environment=environment), ThisHost()).environment
    return make_lock_request(requirements, tool.platform, decided)
