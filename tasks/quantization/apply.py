"""Make candidates, once each, and try them on a served engine."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.core.digests import digest_of_file, short
from tasks.core.errors import CommandError, EngineError, ModelError
from tasks.core.files import PART, as_disk_full, file_lock, fsync_folder, sweep_parts, write_atomically
from tasks.core.progress import say
from tasks.core.settings import Settings
from tasks.core.spec import CandidateFormat
from tasks.core.verdicts import StageName
from tasks.quantization import plan
from tasks.quantization.models import Candidate, Measured, QuantizationRequest, QuantizationResult, Trial

WORKER = Path(__file__).parent / "worker" / "make_gguf.py"
MODEL_FILE = "model.gguf"
DOCUMENT = "candidate.json"
LOG = "engine.log"


class CandidateBench(Protocol):
    """Where candidates are made and served."""

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        """Write the model in `form`. Raises `ModelError`, `CommandError` or `DiskFullError`."""

    def try_candidate(
        self, model_file: Path, log: Path, *, text: str | None, tokens: int, window: int, slots: int
    ) -> Trial:
        """Serve the file, score up to `tokens` of `text`, measure single-stream speed. Raises `EngineError`."""


class CandidateDocument(BaseModel):
    """`candidate.json`, written last: what lies beside it, and from what and by which converter it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal["slipway.candidate/1"] = Field(default="slipway.candidate/1", alias="schema")
    model_digest: str
    maker_digest: str
    format: CandidateFormat
    digest: str
    size_bytes: int


def maker_digest() -> str:
    """Names the converter: another one may make another file of the same model."""
    return digest_of_file(WORKER)


def measure_candidates(
    request: QuantizationRequest, bench: CandidateBench, settings: Settings
) -> QuantizationResult:
    """Make and measure every format, then choose. Raises what the baseline raises: there is no comparison then."""
    first, *others = request.formats
    baseline_file, baseline = _make_and_try(request, first, bench, settings)
    plan.check_baseline(first, baseline, compared=request.text is not None)
    rows = [plan.judge(baseline_file, baseline, baseline, request.tolerance)]
    _say(rows[-1])
    for form in others:
        rows.append(_measure(request, form, baseline, bench, settings))
        _say(rows[-1])
    return plan.choose(rows, request.tolerance)


def _measure(
    request: QuantizationRequest,
    form: CandidateFormat,
    baseline: Trial,
    bench: CandidateBench,
    settings: Settings,
) -> Measured:
    """A candidate that cannot be made or served is rejected, with the reason; the stage goes on."""
    try:
        candidate, trial = _make_and_try(request, form, bench, settings)
    except (ModelError, CommandError, EngineError) as error:
        return Measured(format=form, rejected=error.what)
    return plan.judge(candidate, trial, baseline, request.tolerance)


def _make_and_try(
    request: QuantizationRequest, form: CandidateFormat, bench: CandidateBench, settings: Settings
) -> tuple[Candidate, Trial]:
    say(StageName.QUANTIZATION, f"making {form}")
    candidate = make_candidate(request, form, bench, settings)
    say(StageName.QUANTIZATION, f"measuring {form} ({candidate.size_bytes / 1e6:.1f} MB)")
    window = plan.window_tokens(request.context)
    trial = bench.try_candidate(
        candidate.path,
        candidate.path.with_name(LOG),
        text=request.text,
        tokens=request.tokens,
        window=window,
        slots=plan.window_slots(request.tokens, window) if request.text else 1,
    )
    return candidate, trial


def make_candidate(
    request: QuantizationRequest, form: CandidateFormat, bench: CandidateBench, settings: Settings
) -> Candidate:
    """The model in this format; an earlier file is used again once its digest is verified."""
    maker = maker_digest()
    name = f"{short(request.model_digest)}-{form}-{short(maker)[:6]}"
    folder = settings.candidates / name
    with file_lock(settings.leases / f"candidate-{name}.lock", wait=True, holder=f"the candidate {name}"):
        if (found := read_candidate(folder, request.model_digest)) is not None:
            return found
        folder.mkdir(parents=True, exist_ok=True)
        sweep_parts(folder)
        path = folder / MODEL_FILE
        part = path.with_name(MODEL_FILE + PART)
        try:
            bench.convert(WORKER, request.model_dir, form, part)
            _sync(part)
            digest = digest_of_file(part)
            part.rename(path)
        except OSError as error:
            raise as_disk_full(error, path) from error
        finally:
            part.unlink(missing_ok=True)
        fsync_folder(folder)
        document = CandidateDocument(
            model_digest=request.model_digest,
            maker_digest=maker,
            format=form,
            digest=digest,
            size_bytes=path.stat().st_size,
        )
        write_atomically(folder / DOCUMENT, document.model_dump_json(by_alias=True, indent=1))
        return _candidate(folder, document)


def read_candidate(folder: Path, model_digest: str) -> Candidate | None:
    """The whole candidate in `folder`; None if there is none or a byte of it has changed."""
    try:
        document = CandidateDocument.model_validate_json((folder / DOCUMENT).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    candidate = _candidate(folder, document)
    return candidate if document.model_digest == model_digest and is_whole(candidate) else None


def is_whole(candidate: Candidate) -> bool:
    """Whether the file is there and holds the bytes that were measured: engines serve damaged tensors happily."""
    try:
        return (
            candidate.path.stat().st_size == candidate.size_bytes
            and digest_of_file(candidate.path) == candidate.digest
        )
    except FileNotFoundError:
        return False


def still_good(result: QuantizationResult) -> bool:
    """Whether the chosen candidate is there unharmed."""
    return result.chosen is not None and is_whole(result.candidate)


def _candidate(folder: Path, document: CandidateDocument) -> Candidate:
    return Candidate(
        format=document.format,
        path=folder / MODEL_FILE,
        digest=document.digest,
        size_bytes=document.size_bytes,
    )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _say(row: Measured) -> None:
    if row.rejected:
        say(StageName.QUANTIZATION, f"{row.format}: {row.rejected}")
        return
    perplexity = f"perplexity {row.quality.perplexity:.2f}, " if row.quality else ""
    say(StageName.QUANTIZATION, f"{row.format}: {perplexity}{row.tokens_per_s or math.nan:.0f} tokens/s")
