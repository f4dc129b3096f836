"""What a command checks before it starts a Prefect server: nobody waits for one to read of a wrong path."""

from __future__ import annotations

import os

from tasks.core.settings import Settings
from tasks.core.spec import DeploySpec


def check_here(spec: DeploySpec, *, for_rollout: bool) -> None:
    """Raise the `SlipwayError` that the flow would raise first of all."""
    from blocks.model_registry import resolve
    from blocks.preflight import check_host, check_inputs, check_model

    settings = Settings.load()
    if for_rollout:
        check_host(spec, settings)
    else:
        check_inputs(spec, settings)
    if spec.model.startswith("file:") or "SLIPWAY_S3_BLOCK" not in os.environ:  # Prefect holds the block
        check_model(resolve(spec.model, settings).source, settings)
