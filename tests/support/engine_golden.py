"""What each engine is started with, a file each: `python tests/support/engine_golden.py` makes them anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.core.serving import Loader, ServingConfig
from tasks.engines.base import Engine
from tasks.engines.catalogue import deployable_engines

GOLDEN = Path(__file__).parent.parent / "golden" / "engines"

CONFIG = ServingConfig(
    served_name="chat",
    batch=8,
    context=4096,
    threads=2,
    gpu_layers=99,
    gpus=2,
    gpu_indices=(2, 3),
    memory_fraction=0.9,
    batched_tokens=8192,
    micro_batch_tokens=1024,
    dtype="bfloat16",
    loader=Loader.FASTSAFETENSORS,
)
ON_PROCESSOR = ServingConfig(served_name="chat", batch=8, context=4096, threads=2, kv_bytes_per_token=4096)


def pages() -> dict[str, str]:
    """All golden files, by name."""
    found = {}
    for engine in deployable_engines():
        commands = {"on_gpus": _command(engine, CONFIG), "on_the_processor": _command(engine, ON_PROCESSOR)}
        found[f"{engine.kind}.json"] = json.dumps(commands, indent=1) + "\n"
    return found


def _command(engine: Engine, config: ServingConfig) -> dict[str, Any]:
    model = "/srv/models/m.gguf" if engine.card.loads_gguf else "/srv/models/m"
    worker = f"/slipway/{engine.server_worker.name}" if engine.server_worker else ""
    command = engine.command("/env/bin/python", worker, model, config)
    return {"argv": command.at("127.0.0.1", 8000), "env": command.env}


if __name__ == "__main__":
    for name, text in pages().items():
        (GOLDEN / name).write_text(text)
