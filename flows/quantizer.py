"""The quantizer's own environment: its pins conflict with the engines', so it never shares theirs, or Slipway's."""

from __future__ import annotations

import os
from pathlib import Path

from blocks.environment_trial import EnvironmentTrial
from blocks.host import ThisHost
from blocks.uv import Uv
from flows.torch_backend import decide_backend
from tasks.core.errors import WrongUseError
from tasks.core.progress import say
from tasks.core.settings import Settings
from tasks.core.spec import Environment
from tasks.core.verdicts import StageName
from tasks.environment import apply as environments
from tasks.environment.models import EnvironmentRequest, Locked, LockRequest, Refusal
from tasks.environment.plan import make_lock_request
from tasks.quantization.recipe import QUANTIZER


def lock_quantizer(settings: Settings) -> Locked:
    """The lock that stands, or a new one. Raises what the environment stage raises, and `WrongUseError` if the
    packages do not go together."""
    links = os.environ.get("PIP_FIND_LINKS")
    tool = Uv(find_links=links)
    locked = environments.lock(_lock_request(tool, links), tool, settings)
    if isinstance(locked, Refusal):
        raise WrongUseError(f"the quantizer cannot be installed: {locked.reason}")
    return locked


def build_quantizer(locked: Locked, settings: Settings) -> Path:
    """The Python of the environment that stands, or of a new one."""
    if not environments.environment_folder(locked, settings).exists():
        say(StageName.QUANTIZATION, "building the quantizer's environment")
    tool = Uv(find_links=os.environ.get("PIP_FIND_LINKS"))
    return environments.build(locked, tool, EnvironmentTrial(), settings).python_path


def _lock_request(tool: Uv, links: str | None) -> LockRequest:
    """Torch comes as this host can run it; from pip's own folder of wheels where it has one."""
    environment = Environment(torch_backend=None if links else "auto", requirements=QUANTIZER)
    decided = decide_backend(EnvironmentRequest(environment=environment), ThisHost()).environment
    return make_lock_request(QUANTIZER, tool.platform, decided)
