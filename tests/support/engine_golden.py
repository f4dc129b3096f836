"""What each engine is started with, a file each: `python tests/support/engine_golden.py` makes them anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.core.model_task import Pooling, Task
from tasks.core.serving import Loader, ServingConfig
from tasks.core.spec import parse_spec
from tasks.core.spec_sections import Serving
from tasks.engines.arguments import check_arguments
from tasks.engines.base import Engine
from tasks.engines.catalogue import deployable_engines
from tasks.engines.parsers import check_parsers, offered

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
    remote_code={"modeling_own.py": "sha256:0"},
)
ON_PROCESSOR = ServingConfig(served_name="chat", batch=8, context=4096, threads=2, kv_bytes_per_token=4096)

OWN = {
    "llama.cpp": {
        "engine_args": {"cache-type-k": "q8_0", "no_warmup": True, "temp": 0.5, "kv-unified": False},
        "engine_env": {"GGML_CUDA_FORCE_MMQ": "1"},
    },
    "transformers": {
        "engine_args": {"attn-implementation": "sdpa", "enable_cors": True},
        "engine_env": {"TOKENIZERS_PARALLELISM": "false"},
    },
    "sglang": {
        "engine_args": {
            "cuda-graph-bs-decode": [1, 2, 4],
            "enable_torch_compile": True,
            "kv-cache-dtype": "fp8_e5m2",
        },
        "engine_env": {"SGLANG_LOG_GC": "true"},
    },
    "tensorrt-llm": {
        "engine_args": {"enable-chunked-prefill": True, "max_beam_width": 2, "num_postprocess_workers": 4},
        "engine_env": {"TRTLLM_ENABLE_PDL": "1"},
    },
    "vllm": {
        "engine_args": {
            "allowed-local-media-path": "/media",
            "cudagraph_capture_sizes": [1, 2, 4],
            "enable-prefix-caching": True,
            "max_logprobs": 5,
            "middleware": ["one.App", "two.App"],
            "speculative-config": '{"method": "ngram", "num_speculative_tokens": 3}',
        },
        "engine_env": {"OMP_WAIT_POLICY": "active", "VLLM_LOGGING_LEVEL": "DEBUG"},
    },
}
"""What a spec may add."""

OFFERED: dict[str, dict[str, Any]] = {
    "llama.cpp": {"tool_parser": "auto", "reasoning_parser": "deepseek", "structured_output": "auto"},
    "sglang": {"tool_parser": "hermes", "reasoning_parser": "qwen3", "structured_output": "xgrammar"},
    "tensorrt-llm": {},
    "transformers": {},
    "vllm": {"tool_parser": "hermes", "reasoning_parser": "qwen3", "structured_output": "xgrammar"},
}
"""What a service may offer: other names, and parsers."""


def pages() -> dict[str, str]:
    """All golden files, by name."""
    found = {}
    for engine in deployable_engines():
        spec = parse_spec(
            {"name": "chat", "model": "file:/m", "engine": engine.kind.value, **OWN[engine.kind]}
        )
        check_arguments(engine.kind, spec.engine_args)
        name = "org/chat:1" if engine.card.colon_in_names else "org/chat-1"
        serving = Serving(names=(name, "gpt-4"), **OFFERED[engine.kind])
        check_parsers(engine.kind, serving, spec.engine_args)
        own = {"engine_args": spec.engine_args, "engine_env": spec.engine_env}
        more = {
            f"for_{task}": _command(
                engine, ON_PROCESSOR.model_copy(update={"task": task, "pooling": pooling})
            )
            for task, pooling in ((Task.EMBED, Pooling.MEAN), (Task.RERANK, None))
            if task in engine.card.tasks
        }
        commands = {
            "on_gpus": _command(engine, CONFIG),
            "on_the_processor": _command(engine, ON_PROCESSOR),
            "with_arguments_of_the_spec": _command(engine, ON_PROCESSOR.model_copy(update=own)),
            **more,
            "with_names_and_parsers": _command(engine, ON_PROCESSOR.model_copy(update=offered(serving))),
        }
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
