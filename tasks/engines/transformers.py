"""transformers serve: whatever Transformers can load, on the processor or a GPU."""

from __future__ import annotations

from pathlib import Path

from tasks.core.serving import ServingConfig
from tasks.core.spec import EngineKind
from tasks.engines.base import HOST, PASSIVE, PORT, CardEngine, CommandLine, flags, seen


class Transformers(CardEngine):
    """The library's own server; see `worker/transformers_server.py` for how it gets the model's name."""

    def __init__(self) -> None:
        super().__init__(EngineKind.TRANSFORMERS)

    @property
    def server_worker(self) -> Path:
        return Path(__file__).parent / "worker" / "transformers_server.py"

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        on_gpus = config.gpus > 0
        arguments = flags(
            {
                "--model": model_file,
                "--alias": config.served_name,
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
        env = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(config.threads), **PASSIVE, **seen(config)}
        return CommandLine(argv=(python, "-I", worker, *arguments), env=env)

    def container_command(self, model_file: str, config: ServingConfig) -> CommandLine:
        return CommandLine(argv=self.image.entrypoint)  # there is none: this says so
