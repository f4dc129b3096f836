"""What makes environments on this machine, by the name that a spec gives it."""

from __future__ import annotations

from blocks.packages.uv import Uv
from tasks.core.spec import EnvironmentManager
from tasks.environment.apply import PackageTool


def open_manager(kind: EnvironmentManager) -> PackageTool:
    """The manager of that kind. Raises `MissingToolError` that says how to install it.

    An environment of the system's is made by nobody: uv reads it.
    """
    if kind is EnvironmentManager.CONDA:
        from blocks.packages.conda import Conda

        return Conda()
    return Uv()
