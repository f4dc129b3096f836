"""SGLang by its wheel or its makers' image."""

from __future__ import annotations

from tasks.core.serving import ServingConfig
from tasks.core.spec import EngineKind
from tasks.engines.base import HOST, PORT, CardEngine, CommandLine, flags, loading, seen

_ENV = {"HF_HUB_OFFLINE": "1"}


class Sglang(CardEngine):
    """`sglang.launch_server`."""

    def __init__(self) -> None:
        super().__init__(EngineKind.SGLANG)

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        return CommandLine(
            argv=(python, "-I", "-m", "sglang.launch_server", *_flags(model_file, config)),
            env={**_ENV, **seen(config)},
        )

    def container_command(self, model_file: str, config: ServingConfig) -> CommandLine:
        return CommandLine(argv=(*self.image.entrypoint, *_flags(model_file, config)), env=_ENV)


def _flags(model_file: str, config: ServingConfig) -> tuple[str, ...]:
    values = flags(
        {
            "--model-path": model_file,
            "--served-model-name": config.served_name,
            "--host": HOST,
            "--port": PORT,
            "--dtype": config.dtype,
            "--context-length": config.context,
            "--max-running-requests": config.batch,
            "--chunked-prefill-size": config.batched_tokens,
            "--mem-fraction-static": config.memory_fraction,
            "--tensor-parallel-size": max(config.gpus, 1),
            "--enable-metrics": True,
        }
    )
    return (*values, *loading(EngineKind.SGLANG, config))
