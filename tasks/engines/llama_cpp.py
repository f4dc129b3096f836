"""llama.cpp by `xllamacpp`: prebuilt, on the CPU or a GPU; the embedded default."""

from __future__ import annotations

from tasks.core.model_task import Task
from tasks.core.serving import FITTED, ServingConfig
from tasks.engines.base import (
    HOST,
    PASSIVE,
    PORT,
    CommandLine,
    Engine,
    flags,
    more_names,
    visible_devices_env,
)


class LlamaCpp(Engine):
    """llama.cpp from its Python distribution; `worker/llama_cpp_server.py` is what runs."""

    def __init__(self, kind: str = "llama.cpp") -> None:
        super().__init__(kind)

    def own_command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        """`--context` of the server is the total over its slots, so it is multiplied here."""
        arguments = flags(
            {
                "--model": model_file,
                "--alias": config.served_name,
                "--host": HOST,
                "--port": PORT,
                "--slots": config.batch,
                "--context": config.batch * config.context,
                "--threads": config.threads,
                "--gpu-layers": config.gpu_layers,
                "--memory-fraction": config.memory_fraction if config.gpu_layers == FITTED else None,
                "--batch-tokens": config.batched_tokens,
                "--micro-batch-tokens": config.micro_batch_tokens,
                "--chat-template": config.template_file,
                "--task": None if config.task is Task.GENERATE else config.task,
                "--pooling": config.pooling,
            }
        )
        return CommandLine(
            argv=(python, "-I", worker, *arguments, *more_names(config)),
            env={**PASSIVE, **visible_devices_env(config)},
        )


ENGINE = LlamaCpp
