"""transformers serve: whatever Transformers can load, on the CPU or a GPU."""

from __future__ import annotations

from tasks.core.serving import ServingConfig
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


class Transformers(Engine):
    """The library's own server; see `worker/transformers_server.py` for how it gets the model's name."""

    def __init__(self, kind: str = "transformers") -> None:
        super().__init__(kind)

    def own_command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        on_gpus = config.gpus > 0
        arguments = flags(
            {
                "--model": model_file,
                "--alias": config.served_name,
                "--chat-template": config.template_file,
                "--trust-remote-code": bool(config.remote_code),
                "--host": HOST,
                "--port": PORT,
                "--device": "auto" if on_gpus else "cpu",
                "--dtype": config.dtype or "auto",
                # Paged attention needs a GPU; without it requests are served one after the other.
                "--continuous-batching": on_gpus,
                "--cb-max-batch-tokens": config.batched_tokens if on_gpus else None,
                "--cb-max-memory-percent": config.memory_fraction if on_gpus else None,
            }
        )
        threads = {"OMP_NUM_THREADS": str(config.threads), **PASSIVE}
        env = {"HF_HUB_OFFLINE": "1", **threads, **visible_devices_env(config)}
        return CommandLine(argv=(python, "-I", worker, *arguments, *more_names(config)), env=env)


ENGINE = Transformers
