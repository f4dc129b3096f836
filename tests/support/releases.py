"""Releases of the embedded engine, as a deploy would make them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.core.digests import digest_of_file
from tasks.core.release import Launch, Release
from tasks.core.serving import ServingConfig
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import get_engine


def make_release(python: Path, gguf: Path, name: str = "chat", batch: int = 4, **rollout: Any) -> Release:
    """A release that serves `gguf` with the engine of `python`'s environment."""
    engine = get_engine(EngineKind.LLAMA_CPP)
    config = ServingConfig(served_name=name, batch=batch, context=256, threads=1)
    command = engine.command(str(python), str(engine.server_worker), str(gguf), config)
    spec = DeploySpec.model_validate({"name": name, "model": f"file:{gguf.parent}", "rollout": rollout})
    return Release(
        at=datetime.now(UTC),
        spec=spec,
        engine=EngineKind.LLAMA_CPP,
        engine_version="2026.10",
        target=spec.target,
        environment_digest="sha256:" + "e" * 64,
        environment_path=python.parent.parent,
        lock_path=python.parent / "lock.txt",
        model_source=spec.model,
        model_digest="sha256:" + "a" * 64,
        candidate_format="f32",
        candidate_digest=digest_of_file(gguf),
        config=config,
        launch=Launch(argv=command.argv, env=command.env, model_file=gguf),
    )
