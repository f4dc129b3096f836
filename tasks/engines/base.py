"""What a serving engine is to Slipway. Pure: it says what to run and runs nothing."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pydantic import Field

from tasks.core.errors import NotFoundError
from tasks.core.frozen import Frozen
from tasks.core.gpus import visible_only
from tasks.core.serving import ServingConfig
from tasks.core.spec_kinds import EngineKind
from tasks.engines.arguments import render
from tasks.engines.card import EngineCard, read_card
from tasks.engines.parsers import parser_arguments

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
"""Threads of OpenMP that spin at a barrier starve each other if the host is busy. Measured on two cores: next to
one busy process, llama.cpp was 50 times slower, torch 6 to 40 times. On an idle host, waiting costs a model of 6 MB
half its speed, as a step takes 4 ms; a larger one the less, the longer its steps."""

HOST = "{host}"
PORT = "{port}"

_WORKERS = Path(__file__).parent / "worker"


class CommandLine(Frozen):
    """Arguments and environment of a process. `{host}` and `{port}` are filled in at the start."""

    argv: tuple[str, ...]
    env: dict[str, str] = Field({})

    def at(self, host: str, port: int) -> tuple[str, ...]:
        """The arguments for this address."""
        return tuple(arg.replace(HOST, host).replace(PORT, str(port)) for arg in self.argv)


class Engine:
    """One serving engine: its card, and how it is started. A module writes the command line of an engine that can be
    deployed; of the others the card is all there is."""

    def __init__(self, kind: str) -> None:
        self.kind = EngineKind(kind)

    @property
    def card(self) -> EngineCard:
        """What is known about it, with sources."""
        return read_card(self.kind)

    @property
    def server_worker(self) -> Path | None:
        """The script that runs the engine inside its own environment; None if the engine's own program does."""
        return _WORKERS / self.card.server_worker if self.card.server_worker else None

    def help_command(self, python: Path) -> tuple[str, ...] | None:
        """What prints all arguments of its server, in the environment of that Python; None if nothing does."""
        if not self.card.help:
            return None
        program, *rest = self.card.help
        if program == self.card.server_worker:
            return (str(python), "-I", str(self.server_worker), *rest)
        return (sibling_program(str(python), program), *rest)

    @property
    def builds_images(self) -> bool:
        """Whether Slipway builds an image of it from the lock of its environment."""
        return self.server_worker is not None and bool(self.card.server_packages)

    @property
    def native_classes(self) -> Path | None:
        """The script that tells which types of models it has classes of its own for, inside its own environment."""
        return _WORKERS / self.card.native_classes if self.card.native_classes else None

    @property
    def tiny_model(self) -> Path | None:
        """The script that writes a tiny model for it, inside its own environment."""
        return _WORKERS / self.card.tiny_model if self.card.tiny_model else None

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        """How to serve `model_file`; `python` and `worker` are paths where the process will run.

        The spec's own arguments come last, and its variables win over defaults of the engine's module. Raises
        `NotFoundError` for an engine that cannot be deployed yet.
        """
        own = self.own_command(python, worker, model_file, config)
        more = (*parser_arguments(self.card, config), *render(self.card, config.engine_args))
        return CommandLine(argv=(*own.argv, *more), env={**own.env, **config.engine_env})

    def own_command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        """The command without what the spec adds to it: what a module of an engine writes."""
        raise NotFoundError(f"Slipway cannot start {self.card.title} yet: {self.card.missing}")


def visible_devices_env(config: ServingConfig) -> dict[str, str]:
    """The environment in which an engine on the host sees the GPUs that it was given, and no others."""
    return dict(visible_only(config.gpu_indices))


def sibling_program(python: str, program: str) -> str:
    """A program that a distribution installed in the folder of that Python."""
    return str(PurePosixPath(python).with_name(program))


def more_names(config: ServingConfig) -> tuple[str, ...]:
    """The model's further names, for Slipway's own workers."""
    return tuple(word for name in config.names for word in ("--alias", name))


def flags(values: dict[str, object]) -> tuple[str, ...]:
    """Command-line arguments: `{"--port": 80}` gives `--port 80`, True gives the flag alone, None omits it."""
    found: list[str] = []
    for flag, value in values.items():
        if value is None or value is False:
            continue
        found += [flag] if value is True else [flag, str(value)]
    return tuple(found)
