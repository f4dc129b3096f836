"""TensorRT-LLM by `trtllm-serve`, of its wheel or its makers' image."""

from __future__ import annotations

from tasks.core.serving import ServingConfig
from tasks.core.spec import EngineKind
from tasks.engines.base import HOST, PORT, CardEngine, CommandLine, beside, flags, seen

OPTIONS = "trtllm-options.yaml"
"""File of extra options, relative to the folder of the service, which the command is started in."""

_ENV = {"HF_HUB_OFFLINE": "1"}


class TensorrtLlm(CardEngine):
    """The PyTorch backend, which takes Hugging Face folders; a folder of a built engine is taken as well."""

    def __init__(self) -> None:
        super().__init__(EngineKind.TENSORRT_LLM)

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        return CommandLine(
            argv=(beside(python, "trtllm-serve"), model_file, *_flags(config, OPTIONS)),
            env={**_ENV, **seen(config)},
        )

    def container_command(self, model_file: str, config: ServingConfig) -> CommandLine:
        return CommandLine(
            argv=(*self.image.entrypoint, model_file, *_flags(config, f"/config/{OPTIONS}")), env=_ENV
        )

    def files(self, model_file: str, config: ServingConfig) -> dict[str, str]:
        """Without these keys there are no metrics."""
        lines = ["return_perf_metrics: true", "enable_iter_perf_stats: true"]
        if config.dtype:
            lines.append(f"dtype: {config.dtype}")
        return {OPTIONS: "\n".join(lines) + "\n"}


def _flags(config: ServingConfig, options: str) -> tuple[str, ...]:
    return flags(
        {
            "--host": HOST,
            "--port": PORT,
            "--max_batch_size": config.batch,
            "--max_num_tokens": config.batched_tokens,
            "--max_seq_len": config.context,
            "--tp_size": max(config.gpus, 1),
            "--free_gpu_memory_fraction": config.memory_fraction,
            "--extra_llm_api_options": options,
        }
    )
