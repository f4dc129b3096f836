"""A model from its source to verified shards on the local disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from prefect import flow
from prefect.runtime import flow_run

from blocks.host import fio
from blocks.processes.environment_users import running_below
from blocks.storage.sources import open_source, resolve
from flows.asked_by_api import hold_to_list
from flows.copy_progress import show_copy
from flows.measure_disk import figures_for
from flows.named_states import answer_of, unless_cancelled
from flows.recording import Outcome, run_stage
from tasks.core.allowed import Kind, Program
from tasks.core.digests import short
from tasks.core.errors import CommandError, DiskFullError, MissingToolError, SlipwayError
from tasks.core.given_files import absolute_path
from tasks.core.manifest import is_intact, read_manifest
from tasks.core.settings import Settings
from tasks.core.sources import ResolvedModel
from tasks.core.spec import DiskFloor
from tasks.core.verdicts import StageName, StagingVerdict
from tasks.staging import apply, report
from tasks.staging.apply import CopyPlan, Staged, plan_copy, sweep_abandoned
from tasks.staging.copier import missing_bytes
from tasks.staging.models import DiskResult, StagingRequest, StagingResult
from tasks.staging.source import Pinned, pin
from tasks.staging.store import in_use, make_room
from tasks.staging.task import copy_shards


class Copy(Protocol):
    """`apply.stage_model`, or the Prefect task around it."""

    def __call__(self, pinned: Pinned, plan: CopyPlan, folder: Path, *, leases: Path, own: bool) -> Staged:
        """Make `folder` hold the planned files."""


@dataclass(frozen=True)
class Source:
    """What was asked for, found and pinned."""

    resolved: ResolvedModel
    pinned: Pinned


def _run_name() -> str:
    """`stage model` of `file:/path/to/model`: the end of a source says most, and a timeline is narrow."""
    return f"stage {flow_run.parameters['request'].model.rstrip('/').rpartition('/')[2]}"


@flow(name="stage-model", flow_run_name=_run_name)
def stage_model(request: StagingRequest) -> Outcome[StagingResult]:
    """Copy a model into verified, aligned safetensors shards, or repair those that are there.

    Args:
        request: Which model, and how many shards.
    """
    if request.to is not None:  # what is copied may hold code, and lie where somebody else's program finds it
        hold_to_list([Program(key="request.to", kind=Kind.FOLDER, value=str(request.to))], own=("models",))
    return unless_cancelled(lambda: staged(request, copy=copy_shards).as_state())


def stage_and_keep(request: StagingRequest, until: ExitStack) -> Outcome[StagingResult]:
    """The flow; its model stays in use until that stack is closed, however long the stages beside it take."""
    outcome = answer_of(lambda: stage_model(request))
    until.enter_context(in_use(outcome.result.model_dir, Settings.load()))
    return outcome


def staged(request: StagingRequest, *, copy: Copy = apply.stage_model) -> Outcome[StagingResult]:
    """The same without a flow run. Raises `SlipwayError`s of model, disk and network, all recorded."""
    copy = _shown(copy, request.model)
    settings = Settings.load()
    sweep_abandoned(settings.models, settings.leases)
    try:
        source = find(request, settings)
    except SlipwayError as error:
        return _run(request.model, {"model": request.model}, work=_raising(error))
    own = request.to is None
    layout = f"{request.shards}" + (f"-tp{request.tensor_parallel}" if request.tensor_parallel > 1 else "")
    folder = request.to or settings.models / f"{short(source.pinned.digest)}-{layout}"
    folder = absolute_path(folder)
    try:
        disk, remarks = _disk(request, folder)
    except SlipwayError as error:
        return _run(request.model, {"source_digest": source.pinned.digest}, work=_raising(error))
    if disk and disk.result.verdict is StagingVerdict.SLOW and request.disk_floor is DiskFloor.BLOCK:
        return _run(
            request.model,
            {"source_digest": source.pinned.digest, "disk": disk.record},
            work=lambda: blocked(source, folder, disk.result),
            consulted=(disk.record,),
        )
    inputs = {
        "source_digest": source.pinned.digest,
        "shards": request.shards,
        "folder": str(folder),
        "servable": request.servable,
        "convertible": request.convertible,
        "tensor_parallel": request.tensor_parallel,
    }

    def work() -> StagingResult:
        plan = plan_copy(
            source.pinned,
            request.shards,
            convertible=request.convertible,
            servable=request.servable,
            tensor_parallel=request.tensor_parallel,
        )
        gone = _make_room(plan, folder, settings) if own else ()
        done = copy(source.pinned, plan, folder, leases=settings.leases, own=own)
        return to_result(source, folder, done, disk.result if disk else None, (*remarks, *gone))

    with in_use(folder, settings) if own else nullcontext():
        return _run(
            request.model,
            inputs,
            work=work,
            still_good=lambda result: is_intact(result.model_dir, result.manifest_digest),
            consulted=(disk.record,) if disk else (),
        )


def repaired_from_source(folder: Path) -> Outcome[StagingResult]:
    """Mend a staged model from where it came from; what the source no longer gives is `damaged`.

    Raises `ModelError` for a folder without a model, or a source that is another model now.
    """
    settings = Settings.load()
    manifest = read_manifest(folder)

    def work() -> StagingResult:
        pinned = pin(open_source(manifest.source, endpoint=settings.s3_endpoint))
        done = apply.repair_model(pinned, folder, leases=settings.leases)
        return to_result(Source(ResolvedModel(manifest.source), pinned), folder, done, None, ())

    inputs = {"repair": str(folder), "manifest_digest": manifest.digest}
    return _run(manifest.source, inputs, work=work)


def _shown(copy: Copy, model: str) -> Copy:
    """The same copy, with its progress on the terminal and in the run's artifact."""

    def shown(pinned: Pinned, plan: CopyPlan, folder: Path, *, leases: Path, own: bool) -> Staged:
        with show_copy(StageName.STAGING, model, sum(file.size_bytes for file in plan.files)):
            return copy(pinned, plan, folder, leases=leases, own=own)

    return shown


def find(request: StagingRequest, settings: Settings) -> Source:
    """Resolve the model and pin its files."""
    resolved = resolve(request.model, settings)
    return Source(resolved, pin(open_source(resolved.source, endpoint=settings.s3_endpoint)))


def to_result(
    source: Source, folder: Path, done: Staged, disk: DiskResult | None, remarks: tuple[str, ...]
) -> StagingResult:
    """The stage's answer: `slow` where the files are right but the disk is below the baselines."""
    findings = [*done.findings, *remarks, *(disk.findings if disk else ())]
    verdict = StagingVerdict(disk.verdict) if disk else StagingVerdict.VERIFIED
    if done.damaged:
        verdict = StagingVerdict.CORRUPT
        findings.insert(0, "the source's bytes have changed although its files look untouched: copy it anew")
    if done.restaged:
        findings.insert(0, f"missing or damaged, staged again: {', '.join(done.restaged)}")
    manifest = done.manifest
    return StagingResult(
        verdict=verdict,
        model_dir=folder,
        manifest_digest=manifest.digest if manifest else "",
        source=source.resolved.source,
        source_digest=source.pinned.digest,
        version=source.resolved.version,
        size_bytes=manifest.size_bytes if manifest else 0,
        shards=len(manifest.shards) if manifest else 0,
        copied_bytes=done.copied_bytes,
        copy_seconds=done.seconds,
        restaged=done.restaged,
        damaged=done.damaged,
        disk=disk.figures if disk else None,
        findings=tuple(findings),
    )


def _make_room(plan: CopyPlan, folder: Path, settings: Settings) -> tuple[str, ...]:
    """Models that nobody needs end where the limit or the disk asks for it; a remark for each."""
    gone = make_room(
        settings,
        running_below,
        folder,
        size_bytes=sum(file.size_bytes for file in plan.files),
        missing_bytes=missing_bytes(plan.files, folder),
    )
    return tuple(
        f"removed to make room: {model.folder.name}, {model.size_bytes / 1e6:.1f} MB, used longest ago"
        for model in gone
    )


def blocked(source: Source, folder: Path, disk: DiskResult) -> StagingResult:
    """The stage's answer where the spec refuses a disk below the baselines: nothing is copied."""
    return StagingResult(
        verdict=StagingVerdict.BLOCKED,
        model_dir=folder,
        manifest_digest="",
        source=source.resolved.source,
        source_digest=source.pinned.digest,
        version=source.resolved.version,
        size_bytes=0,
        shards=0,
        copied_bytes=0,
        copy_seconds=0.0,
        disk=disk.figures,
        findings=(
            *disk.findings,
            "to deploy all the same: staging.disk_floor=warn, or SLIPWAY_HOME on a faster disk",
        ),
    )


def _disk(request: StagingRequest, folder: Path) -> tuple[Outcome[DiskResult] | None, tuple[str, ...]]:
    """The disk's figures, or why there are none: a model can be staged without them, unless it asks for a floor."""
    if not request.disk_benchmark:
        return None, ()
    try:
        fio.program()
        return figures_for(folder.parent), ()
    except (MissingToolError, CommandError, DiskFullError) as error:
        if request.disk_floor is DiskFloor.BLOCK:
            raise
        return None, (f"the disk was not measured: {error}",)


def _run(
    model: str,
    inputs: Mapping[str, object],
    *,
    work: Callable[[], StagingResult],
    still_good: Callable[[StagingResult], bool] | None = None,
    consulted: tuple[str, ...] = (),
) -> Outcome[StagingResult]:
    return run_stage(
        StageName.STAGING,
        subject=model,
        inputs=inputs,
        result_type=StagingResult,
        report=report,
        work=work,
        still_good=still_good,
        consulted=consulted,
    )


def _raising(error: SlipwayError) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work
