"""A model from its source to verified shards on the local disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task

from blocks.host import fio
from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.asked_by_api import check_programs
from blocks.prefect.flows import flow, step
from blocks.prefect.progress import show_copy
from blocks.processes.environment_users import running_below
from blocks.storage.model_source import check_level
from blocks.storage.sources import open_model, open_source, resolve
from flows.measure_disk import measure_disk
from tasks.core.allowed import Kind, Program
from tasks.core.digests import short
from tasks.core.errors import CommandError, DiskFullError, MissingToolError, SlipwayError
from tasks.core.given_files import absolute_path
from tasks.core.manifest import is_intact, read_manifest
from tasks.core.progress import say
from tasks.core.settings import Settings
from tasks.core.sources import local_folder, split_variant
from tasks.core.spec_kinds import DiskFloor
from tasks.core.stage import Outcome, raising, run_stage
from tasks.core.verdicts import StageName, StagingVerdict
from tasks.staging import apply, report
from tasks.staging.apply import CopyPlan, plan_copy, sweep_abandoned
from tasks.staging.copier import missing_bytes
from tasks.staging.disk.models import DiskRequest, DiskResult
from tasks.staging.models import StagingRequest, StagingResult
from tasks.staging.plan import RULES, Found, blocked, to_result
from tasks.staging.source import ModelSource, pin
from tasks.staging.store import in_use, make_room


def is_retryable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry only faults that may pass without a change by the user. A copy continues after its last full chunk."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, SlipwayError) and error.retryable


copy_shards = step(
    "copy-shards",
    apply.stage_model,
    run_name="copy to {folder}",
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_retryable,
)


def _run_name() -> str:
    """`stage model` of `file:/path/to/model`: the end of a source says most, and a timeline is narrow."""
    return f"stage {flow_run.parameters['request'].model.rstrip('/').rpartition('/')[2]}"


@flow(name="stage-model", flow_run_name=_run_name)
def stage_model(request: StagingRequest) -> Outcome[StagingResult]:
    """Copy a model into verified, aligned safetensors shards, or repair those that are there.

    Args:
        request: Which model, and how many shards.

    Raises `SlipwayError`s of model, disk and network, all recorded.
    """
    if request.to is not None:  # a copy may contain code, in a place where another program loads it
        check_programs([Program(key="request.to", kind=Kind.FOLDER, value=str(request.to))], own=("models",))
    settings = Settings.load()
    sweep_abandoned(settings.models, settings.leases)
    try:
        resolved = resolve(request.model, settings)
        pinned = pin(_open(request, resolved.source, settings))
        if place := local_folder(resolved.source):
            check_level(place, [file.path for file in pinned.files])
    except SlipwayError as error:
        return _run(request.model, {"model": request.model}, work=raising(error))
    found = Found(resolved.source, resolved.version, pinned.digest)
    own = request.to is None
    layout = f"{request.shards}" + (f"-tp{request.tensor_parallel}" if request.tensor_parallel > 1 else "")
    folder = request.to or settings.models / f"{short(found.digest)}-{layout}"
    folder = absolute_path(folder)
    try:
        disk, remarks = _disk(request, folder)
    except SlipwayError as error:
        return _run(request.model, {"source_digest": found.digest}, work=raising(error))
    if disk and disk.result.verdict is StagingVerdict.SLOW and request.disk_floor is DiskFloor.BLOCK:
        return _run(
            request.model,
            {"source_digest": found.digest, "disk": disk.record},
            work=lambda: blocked(found, folder, disk.result),
            consulted=(disk.record,),
        )
    inputs = {
        "source_digest": found.digest,
        "shards": request.shards,
        "folder": str(folder),
        "servable": request.servable,
        "convertible": request.convertible,
        "tensor_parallel": request.tensor_parallel,
        "rules": RULES,
        **({"trust_remote_code": True} if request.trust_remote_code else {}),  # older records still count
    }

    def work() -> StagingResult:
        plan = plan_copy(
            pinned,
            request.shards,
            convertible=request.convertible,
            servable=request.servable,
            tensor_parallel=request.tensor_parallel,
            trust_remote_code=request.trust_remote_code,
        )
        for remark in plan.findings:
            say(StageName.STAGING, remark)
        gone = _make_room(plan, folder, settings) if own else ()
        with show_copy(StageName.STAGING, request.model, sum(file.size_bytes for file in plan.files)):
            done = copy_shards(pinned, plan, folder, leases=settings.leases, own=own)
        return to_result(found, folder, done, disk.result if disk else None, (*remarks, *gone))

    with in_use(folder, settings) if own else nullcontext():
        return _run(
            request.model,
            inputs,
            work=work,
            still_good=lambda result: is_intact(result.model_dir, result.manifest_digest),
            consulted=(disk.record,) if disk else (),
        )


def stage_and_keep(request: StagingRequest, until: ExitStack) -> Outcome[StagingResult]:
    """The flow; its model stays in use until that stack is closed, however long the concurrent stages take."""
    outcome = stage_model(request)
    until.enter_context(in_use(outcome.result.model_dir, Settings.load()))
    return outcome


def repaired_from_source(folder: Path) -> Outcome[StagingResult]:
    """Repair a staged model from its source; a file that the source no longer has is `damaged`.

    Raises `ModelError` for a folder without a model, or a source that is another model now.
    """
    settings = Settings.load()
    manifest = read_manifest(folder)

    def work() -> StagingResult:
        pinned = pin(open_source(manifest.source, endpoint=settings.s3_endpoint))
        done = apply.repair_model(pinned, folder, leases=settings.leases)
        return to_result(Found(manifest.source, None, pinned.digest), folder, done, None, ())

    inputs = {"repair": str(folder), "manifest_digest": manifest.digest}
    return _run(manifest.source, inputs, work=work)


def _open(request: StagingRequest, source: str, settings: Settings) -> ModelSource:
    """The source's files; to be served, only one of several GGUF models."""
    if request.servable or split_variant(source)[1]:
        return open_model(source, request.formats, endpoint=settings.s3_endpoint)
    return open_source(source, endpoint=settings.s3_endpoint)


def _make_room(plan: CopyPlan, folder: Path, settings: Settings) -> tuple[str, ...]:
    """Remove unused models if the limit or the disk requires it; a remark for each."""
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


def _disk(request: StagingRequest, folder: Path) -> tuple[Outcome[DiskResult] | None, tuple[str, ...]]:
    """The disk's figures, or why there are none: a model can be staged without them, unless it asks for a floor."""
    if not request.disk_benchmark:
        return None, ()
    try:
        fio.program()
        return measure_disk.plain(DiskRequest(folder=folder.parent)), ()
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
        flow_recorder(),
        StageName.STAGING,
        subject=model,
        inputs=inputs,
        result_type=StagingResult,
        report=report,
        work=work,
        still_good=still_good,
        consulted=consulted,
    )
