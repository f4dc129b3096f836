"""llama.cpp by `xllamacpp`: prebuilt, on the processor or a GPU; the embedded default. Its makers' image as well."""

from __future__ import annotations

from pathlib import Path

from tasks.core.serving import FITTED, ServingConfig
from tasks.core.spec import EngineKind
from tasks.engines.base import HOST, PASSIVE, PORT, CardEngine, CommandLine, flags, seen


class LlamaCpp(CardEngine):
    """The engine by its Python distribution; see `worker/llama_cpp_server.py` for what runs."""

    def __init__(self) -> None:
        super().__init__(EngineKind.LLAMA_CPP)

    @property
    def server_worker(self) -> Path:
        return Path(__file__).parent / "worker" / "llama_cpp_server.py"

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
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
            }
        )
        return CommandLine(argv=(python, "-I", worker, *arguments), env={**PASSIVE, **seen(config)})

    def container_command(self, model_file: str, config: ServingConfig) -> CommandLine:
        arguments = flags(
            {
                "--model": model_file,
                "--alias": config.served_name,
                "--host": HOST,
                "--port": PORT,
                "--parallel": config.batch,
                "--ctx-size": config.batch * config.context,
                "--threads": config.threads,
                "--n-gpu-layers": config.gpu_layers,
                "--batch-size": config.batched_tokens,
                "--ubatch-size": config.micro_batch_tokens,
                "--metrics": True,
                "--no-ui": True,
            }
        )
        return CommandLine(argv=arguments, env=PASSIVE)
