"""The containers of engines in their makers' images, a file each: `python tests/support/makers_golden.py` makes them
anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.core.release import Launch, Release
from tasks.core.serving import ChatTemplate, ServingConfig
from tasks.core.spec_kinds import EngineKind
from tasks.engines.catalogue import deployable_engines, get_engine
from tasks.rollout.container.plan import plan_container

GOLDEN = Path(__file__).parent.parent / "golden" / "makers_images"
ENGINES = [str(engine.kind) for engine in deployable_engines() if engine.card.image]
CONFIG = ServingConfig(
    served_name="chat",
    batch=8,
    context=4096,
    threads=4,
    gpus=2,
    gpu_indices=(2, 3),
    memory_fraction=0.89,
    batched_tokens=8192,
    chat=ChatTemplate(digest="sha256:c", file=Path("/home/chat_templates/c.jinja")),
    engine_env={"MINE": "1"},
)


def makers_release(engine: str, **changes: Any) -> Release:
    """A release that serves from the image that the engine's makers document."""
    kind = EngineKind(engine)
    card = get_engine(kind).card
    assert card.image is not None
    image = card.image.name_of(card.version)
    worker = get_engine(kind).server_worker
    argv = ("/e/bin/python", f"/home/scripts/1/{worker.name}") if worker else ("/e/bin/python",)
    frame = {
        "at": "2026-01-01T00:00:00Z",
        "spec": {
            "name": "chat",
            "model": "file:/m",
            "engine": kind,
            "target": "docker",
            "hardware": {"gpus": 2, "memory": "64Gi"},
            "rollout": {"image": image},
        },
        "engine": kind,
        "engine_version": card.version,
        "target": "docker",
        "environment_digest": "sha256:e",
        "environment_path": "/e",
        "lock_path": "/locks/l.txt",
        "model_source": "file:/m",
        "model_digest": "sha256:m",
        "candidate_format": "bf16",
        "candidate_digest": "sha256:c",
        "config": CONFIG,
        "launch": Launch(argv=argv, model_file=Path("/models/m")),
    }
    return Release.model_validate(frame | changes)


def makers_page(engine: str) -> str:
    """The plan of its container, without what differs from release to release."""
    plan = plan_container(
        makers_release(engine),
        get_engine(EngineKind(engine)),
        image="sha256:i",
        folder=Path("/home/services/chat"),
        user="1000:1000",
        host_port=4000,
    )
    shown = plan.model_dump(mode="json", exclude={"labels", "name", "image", "host_port", "pids"})
    return json.dumps(shown, indent=1) + "\n"


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in ENGINES:
        (GOLDEN / f"{name}.json").write_text(makers_page(name))
