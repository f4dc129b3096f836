"""Make candidates, once each, and try them on a served engine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tasks.core.digests import digest_of_model, short
from tasks.core.disk_faults import as_disk_fault
from tasks.core.errors import CommandError, CommandTimeoutError, EngineError, ModelError
from tasks.core.files import (
    PART,
    file_lock,
    fsync_folder,
    make_folder,
    require_space,
    sweep_parts,
    write_atomically,
)
from tasks.core.model_task import ANSWERS
from tasks.core.progress import say, step
from tasks.core.settings import Settings
from tasks.core.spec_kinds import CandidateFormat
from tasks.core.verdicts import StageName
from tasks.engines.failures import failure_of
from tasks.quantization import plan
from tasks.quantization.folder_sizes import folder_bytes, refuse_shapes, unpacked_bytes
from tasks.quantization.models import (
    Candidate,
    Measured,
    QuantizationRequest,
    QuantizationResult,
    Trial,
    TrialPlan,
)
from tasks.quantization.quality import reject_weights, worst_weight
from tasks.quantization.recipe import maker_digest, recipe_of
from tasks.quantization.sizes import Source, file_bytes, serving_bytes
from tasks.quantization.store import (
    DOCUMENT,
    CandidateDocument,
    candidate_of,
    is_whole,
    link_model,
    read_candidate,
    remove_model,
    size_of,
    sync_model,
)


class CandidateBench(Protocol):
    """Where candidates are made and served."""

    def convert(self, worker: Path, model_dir: Path, form: CandidateFormat, out: Path) -> None:
        """Write the model in `form`. Raises `ModelError`, `CommandError` or `DiskFullError`."""

    def compare_weights(self, worker: Path, baseline: Path, candidate: Path) -> dict[str, float | None]:
        """For each tensor, the difference in the baseline's standard deviations. Raises `CommandError`."""

    def try_candidate(self, candidate: Candidate, plan: TrialPlan) -> Trial:
        """Serve the file or folder, score the text, do the task items, measure single-stream speed.

        Raises `EngineError`; `SpecError` for a task item that is too long.
        """


def measure_candidates(
    request: QuantizationRequest, source: Source, bench: CandidateBench, settings: Settings
) -> QuantizationResult:
    """Make and measure every format that can fit, then choose.

    Raises what the baseline raises, as nothing can be compared then. One that cannot fit ends in the verdict `none`.
    """
    sizes = predict_sizes(request, source)
    refused = {
        form: reason for form in request.formats if (reason := _refuse(request, form, sizes[form], source))
    }
    rows = []
    for row in _measure_each(request, sizes, refused, bench, settings):
        rows.append(row.model_copy(update={"predicted_bytes": sizes[row.format]}))
        compared = request.formats[0] is not CandidateFormat.AS_IS
        line = _line(row, ANSWERS[request.task], compared=compared)
        say(StageName.QUANTIZATION, line)
        step(len(rows) / len(request.formats), f"{len(rows)} of {len(request.formats)} candidates; {line}")
    return plan.choose(rows, request)


def predict_sizes(request: QuantizationRequest, source: Source) -> dict[CandidateFormat, int]:
    """Size of each format's file or folder, bytes, before it is made."""
    if request.baseline:
        return {
            request.baseline.format: request.baseline.size_bytes,
            CandidateFormat.AS_IS: source.as_is_bytes,
        }
    if source.as_is:
        return dict.fromkeys(request.formats, source.as_is_bytes)
    if request.layout == "gguf-file":
        return {form: file_bytes(source, form) for form in request.formats}
    return {form: folder_bytes(source, form) for form in request.formats}


def _measure_each(
    request: QuantizationRequest,
    sizes: dict[CandidateFormat, int],
    refused: dict[CandidateFormat, str],
    bench: CandidateBench,
    settings: Settings,
) -> Iterator[Measured]:
    first, *others = request.formats
    if first in refused:
        yield Measured(format=first, rejected=refused[first])
        yield from (Measured(format=form, rejected="no baseline to compare with") for form in others)
        return
    _require_space(request, first, sizes[first], settings)
    file = _make_baseline(request, bench, settings)
    baseline = _try(request, file, bench)
    plan.check_baseline(request, baseline)
    row = plan.judge(file, baseline, baseline, request)
    yield row.model_copy(update={"compared_only": request.baseline is not None})
    for form in others:
        if form in refused:
            yield Measured(format=form, rejected=refused[form])
            continue
        _require_space(request, form, sizes[form], settings)
        yield _measure(request, form, file, baseline, bench, settings)


def _make_baseline(request: QuantizationRequest, bench: CandidateBench, settings: Settings) -> Candidate:
    """The first format; of a model that is served as it comes, the model that it is compared with."""
    if request.baseline is None:
        return make_candidate(request, request.formats[0], bench, settings)
    own = plan.of_baseline(request, request.baseline)
    made = make_candidate(own, CandidateFormat.AS_IS, bench, settings)
    return made.model_copy(update={"format": request.baseline.format})


def _refuse(request: QuantizationRequest, form: CandidateFormat, size: int, source: Source) -> str | None:
    """Why a format is not even made."""
    if reason := request.infeasible.get(form):
        return reason
    if request.layout != "gguf-file" and (reason := refuse_shapes(source, form)):
        return reason
    compared = request.baseline is not None and form is request.baseline.format
    weights = unpacked_bytes(source) if request.unpacks and not compared else size
    needed = serving_bytes(weights, source.shape, plan.measured_tokens(request))
    return plan.refuse_memory(needed, request.memory_bytes)


def _require_space(
    request: QuantizationRequest, form: CandidateFormat, size: int, settings: Settings
) -> None:
    """Raise `DiskFullError` if a format's file does not fit on the disk, which says nothing about the format."""
    make_folder(settings.candidates)
    if request.as_is:
        return  # a link to the staged files
    if not (_folder(request, form, settings) / DOCUMENT).exists():
        require_space(settings.candidates, size)


def _measure(
    request: QuantizationRequest,
    form: CandidateFormat,
    baseline_file: Candidate,
    baseline: Trial,
    bench: CandidateBench,
    settings: Settings,
) -> Measured:
    """A candidate that cannot be made or served is rejected, with the reason; the stage continues."""
    candidate, weights, damage = None, None, None
    try:
        candidate = make_candidate(request, form, bench, settings)
        if not request.as_is:  # what others made is not held against the bounds of our own rounding
            comparer = recipe_of(request).comparer
            weights = worst_weight(bench.compare_weights(comparer, baseline_file.path, candidate.path))
            damage = reject_weights(weights, form, baseline_file.format)
        trial = _try(request, candidate, bench)
        if request.baseline:
            plan.check_same_tokens(trial, baseline)
        row = plan.judge(candidate, trial, baseline, request)
    except EngineError as error:
        failure = failure_of(error)
        return Measured(
            format=form, candidate=candidate, weights=weights, rejected=failure.line, failure=failure
        )
    except (ModelError, CommandError) as error:
        return Measured(
            format=form,
            candidate=candidate,
            weights=weights,
            rejected=error.what,
            passing=isinstance(error, CommandTimeoutError),
        )
    reasons = "; ".join(reason for reason in (damage, row.rejected) if reason)
    return row.model_copy(update={"weights": weights, "rejected": reasons or None})


def _try(request: QuantizationRequest, candidate: Candidate, bench: CandidateBench) -> Trial:
    """A first failure of the engine may be a mishap, and would keep the format out for good: the record is reused."""
    say(StageName.QUANTIZATION, f"measuring {candidate.title} ({candidate.size_bytes / 1e6:.1f} MB)")
    try:
        return bench.try_candidate(candidate, plan.trial_plan(request))
    except EngineError as error:
        say(StageName.QUANTIZATION, f"{candidate.format}: {failure_of(error).line}; once more")
        return bench.try_candidate(candidate, plan.trial_plan(request))


def make_candidate(
    request: QuantizationRequest, form: CandidateFormat, bench: CandidateBench, settings: Settings
) -> Candidate:
    """The model in this format; an earlier file or folder is used again once its digest is verified."""
    say(
        StageName.QUANTIZATION,
        f"taking {request.model_dir.name} as it is, {request.stored_as or 'the baseline'}"
        if request.as_is
        else f"making {form}",
    )
    folder, recipe = _folder(request, form, settings), recipe_of(request)
    holder = f"the candidate {folder.name}"
    with file_lock(settings.leases / f"candidate-{folder.name}.lock", wait=True, holder=holder):
        if (found := read_candidate(folder, recipe.name, request.model_digest)) is not None:
            return found
        path = folder / recipe.name
        part = path.with_name(recipe.name + PART)
        try:
            # The document of an earlier candidate: nothing may take it for that of the new one.
            remove_model(folder / DOCUMENT)
            folder.mkdir(parents=True, exist_ok=True)
            sweep_parts(folder)
            if request.as_is:
                link_model(request.model_dir, request.as_is, part)
            else:
                bench.convert(recipe.worker, request.model_dir, form, part)
            sync_model(part)
            digest = digest_of_model(part)
            remove_model(path)  # damaged: a folder does not take another's place by itself
            part.rename(path)
        except OSError as error:
            raise as_disk_fault(error, path) from error
        finally:
            with contextlib.suppress(NotADirectoryError):
                remove_model(part)
        fsync_folder(folder)
        document = CandidateDocument(
            model_digest=request.model_digest,
            maker_digest=maker_digest(request, form),
            format=form,
            digest=digest,
            size_bytes=size_of(path),
            stored_as=request.stored_as,
        )
        write_atomically(folder / DOCUMENT, document.model_dump_json(by_alias=True, indent=1))
        return candidate_of(path, document)


def _folder(request: QuantizationRequest, form: CandidateFormat, settings: Settings) -> Path:
    maker = short(maker_digest(request, form))[:6]
    return settings.candidates / f"{short(request.model_digest)}-{form}-{maker}"


def still_good(result: QuantizationResult) -> bool:
    """Whether the chosen candidate is intact, and no other was rejected for a reason that may have passed."""
    passing = any(row.passing for row in result.measured)
    return result.chosen is not None and not passing and is_whole(result.candidate)


def _line(row: Measured, answers: str, *, compared: bool) -> str:
    if row.rejected:
        return f"{row.format}: {row.rejected}"
    quality = ""
    if row.quality:
        quality = f"perplexity {row.quality.perplexity:.2f}, "
    if compared and (left := plan.kept_by(row)):
        quality += f"keeps {left.low:.2%} or more, "
    return f"{row.format}: {quality}{row.tokens_per_s or math.nan:.0f} {answers}/s"
