"""What the load benchmark is asked for, what one load took, and what it answers."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks.core.frozen import Frozen
from tasks.core.result import StageResult
from tasks.core.serving import Loader
from tasks.core.verdicts import ChoiceVerdict


class LoadingRequest(Frozen):
    """Which model's files to load, and how often."""

    folder: Path = Field(description="Folder with safetensors shards, or with GGUF files.")
    runs: int = Field(3, ge=1, le=50, description="Cold loads by each loader; the median counts.")
    install: bool = Field(False, description="Build the environment of the loaders that need one.")
    fresh: bool = Field(False, description="Measure even if there is a choice from the last days.")


class Model(Frozen):
    """The files that make up a model, in one format."""

    format: Literal["safetensors", "gguf"]
    files: tuple[Path, ...]
    size_bytes: int = Field(ge=0)


class Load(Frozen):
    """One load from a cold page cache. `digest` is of all tensors' bytes, if it was asked for.

    `anonymous_bytes` is the process's memory without the page cache, `peak_bytes` the most it had mapped.
    """

    seconds: float = Field(gt=0)
    cpu_s: float = Field(ge=0)
    size_bytes: int = Field(ge=0)
    anonymous_bytes: int = Field(ge=0)
    peak_bytes: int = Field(ge=0)
    digest: str | None = None


class LoaderFigures(Frozen):
    """What one loader did: medians over its runs. `golden` is whether each tensor had the same bytes as in the
    files; `reason` says why it was not measured, or may not win."""

    loader: Loader
    golden: bool | None = None
    reason: str | None = None
    seconds: float | None = None
    mb_s: float | None = None
    cpu_s_per_gb: float | None = None
    anonymous_bytes: int | None = None
    peak_bytes: int | None = None
    runs_s: tuple[float, ...] = ()


class LoadingResult(StageResult):
    """The loaders compared on one model and this host, the fastest that is golden, and the engines' options for it.

    `disk_read_mb_s` is what fio reads from the same disk; None without fio.
    """

    verdict: ChoiceVerdict
    at: datetime
    folder: Path
    format: Literal["safetensors", "gguf"]
    files: int = Field(ge=1)
    size_bytes: int = Field(ge=0)
    loaders: tuple[LoaderFigures, ...]
    chosen: Loader | None = None
    engine_arguments: dict[str, tuple[str, ...]] = Field({})
    disk_read_mb_s: float | None = Field(None, gt=0)
    findings: tuple[str, ...] = ()

    @property
    def winner(self) -> LoaderFigures | None:
        """The chosen loader's figures."""
        return next((figures for figures in self.loaders if figures.loader == self.chosen), None)

    def ratio_to_disk(self, figures: LoaderFigures) -> float | None:
        """A loader's speed as a share of the disk's."""
        return figures.mb_s / self.disk_read_mb_s if figures.mb_s and self.disk_read_mb_s else None
