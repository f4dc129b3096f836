"""What a serving engine is to Slipway. Everything here is pure: it says what to run and runs nothing."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from tasks.core.errors import NotFoundError
from tasks.core.gpus import visible_only
from tasks.core.serving import ServingConfig
from tasks.core.spec import CandidateFormat, EngineKind
from tasks.engines.card import EngineCard, Image, SystemLibrary, read_card
from tasks.engines.loaders import load_arguments

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
"""Threads of OpenMP that spin at a barrier starve each other where the host is busy. Measured on two cores: beside
one busy process llama.cpp was 50 times slower, torch 6 to 40 times. On an idle host, waiting costs a model of 6 MB
half its speed, as a step takes 4 ms; a larger one the less, the longer its steps."""

HOST = "{host}"
PORT = "{port}"


class CommandLine(BaseModel):
    """Arguments and environment of a process. `{host}` and `{port}` are filled in at the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    argv: tuple[str, ...]
    env: dict[str, str] = {}

    def at(self, host: str, port: int) -> tuple[str, ...]:
        """The arguments for this address."""
        return tuple(_filled(arg, host, port) for arg in self.argv)

    def env_at(self, host: str, port: int) -> dict[str, str]:
        """The environment for this address: Ollama takes it from there."""
        return {name: _filled(value, host, port) for name, value in self.env.items()}


def _filled(text: str, host: str, port: int) -> str:
    return text.replace(HOST, host).replace(PORT, str(port))


class Engine(Protocol):
    """One serving engine: its card, and how it is started."""

    @property
    def card(self) -> EngineCard:
        """What is known of it, with sources."""

    @property
    def kind(self) -> EngineKind: ...

    @property
    def package(self) -> str:
        """Distribution whose installed version is the engine's version."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """PEP 508 requirements of its environment."""

    @property
    def server_packages(self) -> tuple[str, ...]:
        """Distributions that serving needs: all that goes into an image, with what they require."""

    @property
    def server_imports(self) -> tuple[str, ...]:
        """Modules that the server worker imports: what an image is proved by."""

    @property
    def imports(self) -> tuple[str, ...]:
        """Modules that the proof imports."""

    @property
    def needs_gpu(self) -> bool: ...

    @property
    def formats(self) -> tuple[CandidateFormat, ...]:
        """Candidate formats it can load."""

    @property
    def max_batch(self) -> int:
        """Most sequences that one process serves at once."""

    @property
    def maps_files(self) -> bool:
        """Whether it maps the model's files, so that what is in the page cache loads at once."""

    @property
    def server_worker(self) -> Path | None:
        """The script that runs the engine inside its own environment; None where the engine's own program does."""

    @property
    def system_libraries(self) -> tuple[SystemLibrary, ...]:
        """Libraries that are not part of every Linux."""

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        """How to serve `model_file`; `python` and `worker` are paths where the process will run."""

    def container_command(self, model_file: str, config: ServingConfig) -> CommandLine:
        """What follows the stock image of the engine's makers. Raises `NotFoundError` where there is none."""

    def files(self, model_file: str, config: ServingConfig) -> dict[str, str]:
        """Manifests that must lie beside the command: text by path relative to the folder of the service."""

    def api_model(self, model_file: str, config: ServingConfig) -> str:
        """The name by which the engine's API knows the model."""


class CardEngine:
    """What all engines read off their cards. A subclass writes the command lines."""

    def __init__(self, kind: EngineKind) -> None:
        self.kind = kind

    @property
    def card(self) -> EngineCard:
        return read_card(self.kind)

    @property
    def package(self) -> str:
        return self.card.package

    @property
    def requirements(self) -> tuple[str, ...]:
        return self.card.requirements

    @property
    def server_packages(self) -> tuple[str, ...]:
        return self.card.server_packages

    @property
    def server_imports(self) -> tuple[str, ...]:
        return self.card.server_imports

    @property
    def imports(self) -> tuple[str, ...]:
        return self.card.imports

    @property
    def needs_gpu(self) -> bool:
        return self.card.needs_gpu

    @property
    def formats(self) -> tuple[CandidateFormat, ...]:
        return self.card.formats

    @property
    def max_batch(self) -> int:
        return self.card.max_batch

    @property
    def maps_files(self) -> bool:
        return self.card.maps_files

    @property
    def server_worker(self) -> Path | None:
        return None

    @property
    def system_libraries(self) -> tuple[SystemLibrary, ...]:
        return self.card.system_library

    @property
    def image(self) -> Image:
        """The stock image. Raises `NotFoundError` where there is none."""
        if self.card.image is None:
            raise NotFoundError(
                f"{self.card.title} has no image of its makers",
                fix="build one from the lock, as for llama.cpp",
            )
        return self.card.image

    def files(self, model_file: str, config: ServingConfig) -> dict[str, str]:
        return {}

    def api_model(self, model_file: str, config: ServingConfig) -> str:
        names = {
            "served-name": config.served_name,
            "folder-name": PurePosixPath(model_file).name,
            "tensorrt_llm": "tensorrt_llm",
        }
        return names[self.card.api_model]


def seen(config: ServingConfig) -> dict[str, str]:
    """The environment in which an engine on the host sees the GPUs that it was given, and no others."""
    return dict(visible_only(config.gpu_indices))


def loading(kind: EngineKind, config: ServingConfig) -> tuple[str, ...]:
    """What the engine is told to load by the configured loader; nothing where it cannot, or was not asked to."""
    return (load_arguments(kind, config.loader) or ()) if config.loader else ()


def beside(python: str, program: str) -> str:
    """A program that a distribution installed beside that Python."""
    return str(PurePosixPath(python).with_name(program))


def flags(values: dict[str, object]) -> tuple[str, ...]:
    """Arguments of those that have a value: `{"--port": 80}` is `--port 80`; True stands alone, None is left out."""
    found: list[str] = []
    for flag, value in values.items():
        if value is None or value is False:
            continue
        found += [flag] if value is True else [flag, str(value)]
    return tuple(found)
