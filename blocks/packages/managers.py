"""The environment managers of this machine, by their names in a spec."""

from __future__ import annotations

from blocks.packages.uv import Uv
from tasks.core.spec_kinds import EnvironmentManager
from tasks.environment.apply import PackageTool


def open_manager(kind: EnvironmentManager) -> PackageTool:
    """The manager of that kind. Raises `MissingToolError` that says how to install it.

    For an existing environment (`system`), uv only reads it.
    """
    if kind is EnvironmentManager.CONDA:
        from blocks.packages.conda import Conda

        return Conda()
    return Uv()
