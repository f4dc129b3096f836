"""Ollama: one server that keeps models as blobs; its settings are environment variables, its models come by HTTP."""

from __future__ import annotations

from typing import Any

from tasks.core.serving import ServingConfig
from tasks.core.spec import EngineKind
from tasks.engines.base import HOST, PORT, CardEngine, CommandLine, seen


class Ollama(CardEngine):
    """The model is made after the start, from a blob of its GGUF file: see `create_request`."""

    def __init__(self) -> None:
        super().__init__(EngineKind.OLLAMA)

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        return CommandLine(argv=("ollama", "serve"), env={**_env(config), **seen(config)})

    def container_command(self, model_file: str, config: ServingConfig) -> CommandLine:
        return CommandLine(argv=("serve",), env=_env(config) | {"OLLAMA_MODELS": self.image.writable[0]})


def _env(config: ServingConfig) -> dict[str, str]:
    return {
        "OLLAMA_HOST": f"{HOST}:{PORT}",
        "OLLAMA_MODELS": "ollama",
        "OLLAMA_NUM_PARALLEL": str(config.batch),
        "OLLAMA_CONTEXT_LENGTH": str(config.context),
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_KEEP_ALIVE": "-1",  # else the model is unloaded after five idle minutes
        "OLLAMA_NO_CLOUD": "1",
    }


def create_request(name: str, file_name: str, digest: str) -> dict[str, Any]:
    """The body of `/api/create` for a model whose GGUF was pushed as a blob; `digest` is `sha256:…`."""
    return {"model": name, "files": {file_name: digest}, "stream": False}
