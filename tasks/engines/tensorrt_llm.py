"""TensorRT-LLM: `trtllm-serve` with its PyTorch backend, from its wheel or in its makers' image."""

from __future__ import annotations

from tasks.core.serving import ServingConfig
from tasks.engines.base import HOST, PORT, CommandLine, Engine, flags, sibling_program, visible_devices_env

_QUIET = {"HF_HUB_OFFLINE": "1", "TRTLLM_NO_USAGE_STATS": "1"}


class TensorrtLlm(Engine):
    """The engine's own OpenAI-compatible server; `worker/tensorrt_llm_server.py` gives it a name and metrics."""

    def __init__(self, kind: str = "tensorrt-llm") -> None:
        super().__init__(kind)

    def own_command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        arguments = flags(
            {
                "--model": model_file,
                "--alias": config.served_name,
                "--program": sibling_program(python, "trtllm-serve"),
                "--dtype": config.dtype,
                "--host": HOST,
                "--port": PORT,
                "--backend": "pytorch",
                "--max_batch_size": config.batch,
                "--max_num_tokens": config.batched_tokens,
                "--max_seq_len": config.context,
                "--tp_size": max(config.gpus, 1),
                "--free_gpu_memory_fraction": config.memory_fraction,
                "--chat_template": config.template_file,
                "--trust_remote_code": bool(config.remote_code),
            }
        )
        return CommandLine(
            argv=(python, "-I", worker, *arguments), env={**_QUIET, **visible_devices_env(config)}
        )


ENGINE = TensorrtLlm
