"""The recorder of stages that run in a flow: their artifacts go to Prefect."""

from __future__ import annotations

from blocks.host.recorder import open_recorder
from blocks.prefect.artifacts import publish
from tasks.core.settings import Settings
from tasks.core.stage import Recorder


def flow_recorder() -> Recorder:
    """Outside a run nothing is published."""
    return open_recorder(Settings.load(), publish)
