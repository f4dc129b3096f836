"""What staging is asked for, and what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from tasks.core.frozen import Frozen
from tasks.core.result import StageResult
from tasks.core.sources import FORMS
from tasks.core.spec import DeploySpec
from tasks.core.spec_kinds import CandidateFormat, DiskFloor
from tasks.core.verdicts import StagingVerdict
from tasks.staging.disk.models import DiskFigures


class StagingRequest(Frozen):
    """Which model to copy to the local disk, and how."""

    model: str = Field(description=f"{FORMS}.")
    shards: int | Literal["auto"] = Field("auto", description="Number of weight shards; auto by size.")
    disk_benchmark: bool = Field(True, description="Measure the disk with fio if it is installed.")
    disk_floor: DiskFloor = Field(DiskFloor.WARN, description="What a disk below the baselines does.")
    to: Path | None = Field(None, description="Folder to stage into; one below SLIPWAY_HOME when empty.")
    tensor_parallel: int = Field(
        1, ge=1, description="Ranks that will load it: the automatic number of shards is a multiple of this."
    )
    servable: bool = Field(
        True, description="Refuse, before anything is copied, a model whose architecture is not known."
    )
    convertible: bool = Field(
        True, description="Refuse, before anything is copied, a model that cannot be converted to GGUF."
    )

    trust_remote_code: bool = Field(
        False, description="Require the code that the model brings along: the engine will run it."
    )

    formats: tuple[CandidateFormat, ...] = Field(
        (), description="Of several GGUF models in the source, the one that is in one of these formats."
    )

    @classmethod
    def of(cls, spec: DeploySpec, *, convertible: bool) -> Self:
        """What a deploy stages: `convertible` if its engine loads GGUF."""
        return cls(
            model=spec.model,
            shards=spec.staging.shards,
            disk_benchmark=spec.staging.disk_benchmark,
            disk_floor=spec.staging.disk_floor,
            convertible=convertible,
            formats=spec.tuning.candidates,
            trust_remote_code=spec.serving.trust_remote_code,
        )

    def of_baseline(self, model: str) -> Self:
        """What is staged to compare the model with."""
        return self.model_copy(update={"model": model, "convertible": False, "formats": ()})


class SourceFile(Frozen):
    """One file of a source. `identity` changes whenever its bytes do: an ETag, or times and inode.

    `sha256` is what the source states for its bytes, if anything.
    """

    path: str
    size_bytes: int = Field(ge=0)
    identity: str
    sha256: str | None = None


class StagingResult(StageResult):
    """A staged model, or why there is none.

    `copied_bytes` is what this run wrote of the model's files; `restaged` names files that had been staged
    before and were missing or damaged; `damaged` those that have changed at the source since they were staged
    (verdict `corrupt`; `manifest_digest` is then empty). `disk` is None if it was not measured.
    """

    verdict: StagingVerdict
    model_dir: Path
    manifest_digest: str
    source: str
    source_digest: str
    version: str | None = None
    size_bytes: int = Field(ge=0)
    shards: int = Field(ge=0)
    copied_bytes: int = Field(ge=0)
    copy_seconds: float = Field(ge=0)
    restaged: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    disk: DiskFigures | None = None
    findings: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """See `StageResult.reasons`."""
        return self.findings
