"""Whether the engine in an environment has classes of its own for a model, before the model is copied for it."""

from __future__ import annotations

import json
from pathlib import Path

from blocks.processes.process import run
from tasks.core.child_environment import Needs
from tasks.core.errors import CommandError, ModelError
from tasks.core.paths import shown
from tasks.core.progress import say
from tasks.core.verdicts import StageName
from tasks.engines.base import Engine

_TIMEOUT_S = 300.0


def check_native(engine: Engine, python: Path, model_type: str, where: str) -> None:
    """Raise `ModelError` if the engine in the environment of `python` cannot serve the model at `where` without the
    code that it brings along, which is not to be run. If the engine does not tell, its first start does."""
    worker = engine.native_classes
    if worker is None:
        return
    say(
        StageName.ENVIRONMENT, f"asking {engine.kind} whether it knows models of the type {shown(model_type)}"
    )
    try:
        answer = run((python, "-I", worker, model_type), timeout_s=_TIMEOUT_S, needs=(Needs.COMPUTE,))
        native = json.loads(answer.stdout)["native"]
    except (CommandError, ValueError, KeyError, TypeError):
        say(StageName.ENVIRONMENT, f"{engine.kind} does not tell: its first start will")
        return
    if not native:
        raise ModelError(
            f"{where} comes with code of its own, which is not run, and {engine.kind} has no classes for models of "
            f"the type {shown(model_type)}",
            fix="if you trust that code, set serving.trust_remote_code: true",
        )
