"""What each engine is started with, as files: `python tests/support/engine_golden.py` makes `tests/golden/engines` anew.

None of these but llama.cpp's and Transformers' process was run: no other engine can be installed here.
"""

from __future__ import annotations

import json
from pathlib import Path

from tasks.core.errors import NotFoundError
from tasks.core.serving import Loader, ServingConfig
from tasks.core.spec import EngineKind
from tasks.engines.base import Engine
from tasks.engines.catalogue import get_engine
from tasks.engines.container import stock_container
from tasks.engines.dify import model_credentials
from tasks.engines.ollama import create_request

GOLDEN = Path(__file__).parent.parent / "golden" / "engines"
DIGEST = "sha256:" + "0123456789abcdef" * 4
"""Stands where the spec gives the digest of a real image."""

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
    """All golden files, by path below `GOLDEN`."""
    found: dict[str, str] = {}
    for kind in EngineKind:
        engine = get_engine(kind)
        model = "/srv/models/m.gguf" if "gguf-file" in engine.card.layouts else "/srv/models/m"
        found |= _process(engine, model, "process", CONFIG)
        if not engine.needs_gpu or kind is EngineKind.VLLM:
            found |= _process(engine, model, "process-without-gpu", ON_PROCESSOR)
        if engine.card.image is not None:
            image = f"{engine.card.image.repository}@{DIGEST}"
            container = stock_container(engine, image, model, CONFIG)
            found[f"{kind}/container.json"] = _json(container.model_dump(mode="json", exclude={"files"}))
            found |= {f"{kind}/files/{path}": text for path, text in container.files.items()}
    found["ollama/create.json"] = _json(create_request("chat", "m.gguf", DIGEST))
    found["dify/credentials.json"] = _json(
        model_credentials("chat", "http://serving.example:8000", context=4096)
    )
    return found


def _process(engine: Engine, model: str, name: str, config: ServingConfig) -> dict[str, str]:
    worker = engine.server_worker
    try:
        command = engine.command(
            "/env/bin/python", f"/slipway/{worker.name}" if worker else "", model, config
        )
    except NotFoundError as error:
        return {f"{engine.kind}/{name}.json": _json({"error": error.what, "fix": error.fix})}
    shown = {
        "argv": command.at("127.0.0.1", 8000),
        "env": command.env_at("127.0.0.1", 8000),
        "model_in_the_api": engine.api_model(model, config),
    }
    return {f"{engine.kind}/{name}.json": _json(shown)}


def _json(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"


if __name__ == "__main__":
    for path, text in pages().items():
        file = GOLDEN / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
