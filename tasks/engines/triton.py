"""Triton Inference Server, with the backend of vLLM or of TensorRT-LLM.

Triton comes as its makers' image only; a process outside of it would need a build of one's own.
"""

from __future__ import annotations

import json

import yaml

from tasks.core.errors import NotFoundError
from tasks.core.serving import ServingConfig
from tasks.core.spec import EngineKind
from tasks.engines.base import HOST, PORT, CardEngine, CommandLine, flags

REPOSITORY = "models"
"""Folder of the model repository, relative to the folder of the service."""

_ENV = {"HF_HUB_OFFLINE": "1"}


class _Triton(CardEngine):
    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        raise NotFoundError(
            f"{self.card.title} does not run as a process: it comes as an image only",
            fix="use target: docker, or another engine",
        )


class TritonVllm(_Triton):
    """Behind the OpenAI-compatible front end, under the name of the model's folder in the repository."""

    def __init__(self) -> None:
        super().__init__(EngineKind.TRITON_VLLM)

    def container_command(self, model_file: str, config: ServingConfig) -> CommandLine:
        arguments = flags(
            {
                "--model-repository": f"/{REPOSITORY}",
                "--tokenizer": model_file,
                "--backend": "vllm",
                "--host": HOST,
                "--openai-port": PORT,
            }
        )
        return CommandLine(argv=(*self.image.entrypoint, *arguments), env=_ENV)

    def files(self, model_file: str, config: ServingConfig) -> dict[str, str]:
        model = {
            "model": model_file,
            "max_model_len": config.context,
            "max_num_seqs": config.batch,
            "max_num_batched_tokens": config.batched_tokens,
            "gpu_memory_utilization": config.memory_fraction,
            "tensor_parallel_size": max(config.gpus, 1),
            "dtype": config.dtype,
            "disable_log_stats": False,
        }
        given = {key: value for key, value in model.items() if value is not None}
        folder = f"{REPOSITORY}/{config.served_name}"
        return {
            f"{folder}/1/model.json": json.dumps(given, indent=1) + "\n",
            f"{folder}/config.pbtxt": _CONFIG,
        }


# vLLM's own metrics are shown only where this parameter asks for them.
_CONFIG = """\
backend: "vllm"
instance_group [{ kind: KIND_MODEL }]
parameters: {
  key: "REPORT_CUSTOM_METRICS"
  value: { string_value: "true" }
}
"""


class TritonTensorrtLlm(_Triton):
    """By KServe's protocol. `config.pbtxt`, `model.py` and `helpers.py` come with the backend, in
    `all_models/llmapi`, and lie beside `model.yaml`, which is written here; the first of them names the model."""

    def __init__(self) -> None:
        super().__init__(EngineKind.TRITON_TENSORRT_LLM)

    def container_command(self, model_file: str, config: ServingConfig) -> CommandLine:
        arguments = flags(
            {
                "--model-repository": f"/{REPOSITORY}",
                "--http-address": HOST,
                "--http-port": PORT,
                "--metrics-port": self.card.metrics.port,
                "--exit-timeout-secs": f"{self.card.stop.grace_s:.0f}",
            }
        )
        return CommandLine(argv=(*self.image.entrypoint, *arguments), env=_ENV)

    def files(self, model_file: str, config: ServingConfig) -> dict[str, str]:
        model = {
            "model": model_file,
            "backend": "pytorch",
            "dtype": config.dtype,
            "tensor_parallel_size": max(config.gpus, 1),
            "pipeline_parallel_size": 1,
            "max_batch_size": config.batch,
            "max_num_tokens": config.batched_tokens,
            "max_seq_len": config.context,
            "kv_cache_config": {"free_gpu_memory_fraction": config.memory_fraction},
            # Triton's own batching is not supported with the LLM API; the engine batches by itself.
            "triton_config": {"max_batch_size": 0, "decoupled": False},
        }
        given = {key: value for key, value in model.items() if value is not None}
        folder = f"{REPOSITORY}/{self.api_model(model_file, config)}"
        return {f"{folder}/1/model.yaml": yaml.safe_dump(given, sort_keys=False)}
