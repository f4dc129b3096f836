"""How an engine's process serves: tuning decides it, a release keeps it, a command line expresses it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field

from tasks.core.engine_options import EngineArg
from tasks.core.frozen import Frozen
from tasks.core.model_task import ANSWERS, Pooling, Task


class Loader(StrEnum):
    """What brings tensors from files into memory.

    `mmap` maps the files and touches each page; `prefetch` does so while threads read the files into the
    page cache; the others are the libraries of these names.
    """

    MMAP = "mmap"
    PREFETCH = "prefetch"
    SAFETENSORS = "safetensors"
    FASTSAFETENSORS = "fastsafetensors"
    RUNAI_STREAMER = "runai_streamer"


FITTED = -1
"""As many layers on the GPUs as llama.cpp finds room for at its start."""


LIBRARIES = (Loader.SAFETENSORS, Loader.FASTSAFETENSORS, Loader.RUNAI_STREAMER)
"""Loaders that need an environment of their own; they read safetensors only."""


ServedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=100)]
"""A name of a model in its API, such as `org/model:tag`."""

ParserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)]
"""What an engine calls one of its parsers. Neither may look like an argument: both are on command lines."""


class ChatTemplate(Frozen):
    """What turns messages into a prompt: the digest of its text, and its `file` if it replaces the model's own.

    `ends_with` is the token that ends an answer; None if that is not known.
    """

    digest: str
    file: Path | None = None
    ends_with: str | None = None


class ServingConfig(Frozen):
    """The tuned configuration of one engine process.

    `batch` is the number of sequences served at once, `context` the tokens of one sequence. llama.cpp puts
    `gpu_layers` on GPUs, at `FITTED` as many as it finds room for; the others split over `gpus`. Of the GPUs' memory
    they may use `memory_fraction`. A step takes at most `batched_tokens`, of which llama.cpp computes
    `micro_batch_tokens` at once. `kv_bytes_per_token` are those of one token's keys and values, as if no layer had a
    window, for an engine that takes all memory for them unless told; None if they are not known. `loader` brings
    the model's files into memory; None leaves that to the engine. `gpu_indices` are the host's GPUs that a process
    may see, by NVML's numbers; all if there are none.
    `chat` is None for a model that only completes prompts. `task` is what it is asked for; `pooling` how an embedding
    is made, None for other tasks.
    `names` are its further names. The parsers find tool calls and reasoning in answers, and `structured_output` makes
    answers follow a schema, each by the engine's name for it; None if the spec names none.
    `remote_code` are the model's own files of code that the engine may run, with their digests; without any it runs
    none.
    `engine_args` and `engine_env` are the spec's own, which the engine gets as they are.
    """

    served_name: str
    batch: int = Field(ge=1)
    context: int = Field(ge=64)
    threads: int = Field(ge=1)
    gpu_layers: int = Field(0, ge=FITTED)
    gpus: int = Field(0, ge=0)
    gpu_indices: tuple[int, ...] = ()
    memory_fraction: float = Field(0.9, gt=0, le=1)
    batched_tokens: int | None = Field(None, ge=1)
    micro_batch_tokens: int | None = Field(None, ge=1)
    kv_bytes_per_token: int | None = Field(None, ge=1)
    dtype: str | None = None
    loader: Loader | None = None
    chat: ChatTemplate | None = None
    task: Task = Task.GENERATE
    pooling: Pooling | None = None
    names: tuple[ServedName, ...] = ()
    tool_parser: ParserName | None = None
    reasoning_parser: ParserName | None = None
    structured_output: ParserName | None = None
    remote_code: dict[str, str] = Field({})
    engine_args: dict[str, EngineArg] = Field({})
    engine_env: dict[str, str] = Field({})

    @property
    def on_gpus(self) -> bool:
        """Whether any of it is on a GPU."""
        return self.gpus > 0 or self.gpu_layers != 0

    @property
    def takes_a_share(self) -> bool:
        """Whether the engine takes `memory_fraction` of the GPUs at its start, or fits itself into it."""
        return self.gpus > 0 or self.gpu_layers == FITTED

    @property
    def answers(self) -> str:
        """What its answers are counted in: tokens, texts or documents."""
        return ANSWERS[self.task]

    @property
    def template_file(self) -> str | None:
        """Path of the file with the chat template that replaces the model's own."""
        return str(self.chat.file) if self.chat and self.chat.file else None


def step_words(batched_tokens: int | None, micro_batch_tokens: int | None) -> list[str]:
    """What an engine was told of its steps, in words."""
    told = ((batched_tokens, "tokens a step"), (micro_batch_tokens, "tokens computed at once"))
    return [f"{tokens} {what}" for tokens, what in told if tokens]
