"""SGLang: `sglang.launch_server` from its wheel, or in its makers' image."""

from __future__ import annotations

from tasks.core.serving import ServingConfig
from tasks.engines.base import HOST, PORT, CommandLine, Engine, flags, visible_devices_env

_ENV = {
    "HF_HUB_OFFLINE": "1",
    # `/health` would else generate a token, wait a second for it, and fail while a long prompt is computed. Slipway's
    # gate and health check ask for a completion themselves.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
}


class Sglang(Engine):
    """The engine's own OpenAI-compatible server."""

    def __init__(self, kind: str = "sglang") -> None:
        super().__init__(kind)

    def own_command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        arguments = flags(
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
                "--chat-template": config.template_file,
                "--enable-metrics": True,
                "--trust-remote-code": bool(config.remote_code),
            }
        )
        # Not `sglang serve`: releases before 0.5 lack it.
        server = (python, "-I", "-m", "sglang.launch_server")
        loader = self.card.load_arguments(config.loader) or ()
        return CommandLine(argv=(*server, *arguments, *loader), env={**_ENV, **visible_devices_env(config)})


ENGINE = Sglang
