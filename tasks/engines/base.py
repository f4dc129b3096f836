"""What a serving engine is to Slipway. Everything here is pure: it says what to run and runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from tasks.core.spec import CandidateFormat, EngineKind

HOST = "{host}"
PORT = "{port}"


class ServingConfig(BaseModel):
    """The tuned configuration of one engine process.

    `batch` is the number of sequences served at once, `context` the tokens of one sequence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    served_name: str
    batch: int = Field(ge=1)
    context: int = Field(ge=64)
    threads: int = Field(ge=1)
    gpu_layers: int = Field(0, ge=0)


class CommandLine(BaseModel):
    """Arguments and environment of a process. `{host}` and `{port}` are filled in at the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    argv: tuple[str, ...]
    env: dict[str, str] = {}

    def at(self, host: str, port: int) -> tuple[str, ...]:
        """The arguments for this address."""
        return tuple(arg.replace(HOST, host).replace(PORT, str(port)) for arg in self.argv)


class SystemLibrary(BaseModel):
    """A shared library that an engine's wheels expect of the host.

    `package` is the Debian package that holds it. For hosts without it, `wheel` is a requirement whose wheels carry
    a copy, at the glob pattern `file` below `site-packages`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    soname: str
    package: str
    wheel: str | None = None
    file: str | None = None


class Engine(Protocol):
    """One serving engine."""

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
    def server_worker(self) -> Path:
        """The script that runs the engine inside its own environment."""

    @property
    def system_libraries(self) -> tuple[SystemLibrary, ...]:
        """Libraries that are not part of every Linux."""

    def command(self, python: str, worker: str, model_file: str, config: ServingConfig) -> CommandLine:
        """How to serve `model_file`; `python` and `worker` are paths where the process will run."""
