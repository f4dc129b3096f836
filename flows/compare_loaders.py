"""Which loader brings a model's files into memory fastest on this host, and gives their bytes right."""

from __future__ import annotations

import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path

from blocks.engine.tool_environment import tool_python
from blocks.host import fio
from blocks.host.load_trial import LoadTrial
from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.flows import flow
from flows.measure_disk import measure_disk
from tasks.core.errors import CommandError, DiskFullError, MissingToolError
from tasks.core.files import mount_of
from tasks.core.given_files import absolute_path
from tasks.core.settings import Settings
from tasks.core.stage import Outcome, run_stage
from tasks.core.verdicts import StageName
from tasks.loading import apply, report
from tasks.loading.models import LoadingRequest, LoadingResult
from tasks.loading.plan import FIGURES_VALID_S, REQUIREMENTS
from tasks.staging.disk.models import DiskRequest
from tasks.staging.store import in_use_by_path

WORKER = Path(apply.__file__).parent / "worker" / "load.py"


@flow(name="compare-loaders", flow_run_name="loaders of {request.folder}")
def compare_loaders(request: LoadingRequest) -> Outcome[LoadingResult]:
    """Load a model's files cold by each loader there is, and choose the fastest that gives the right bytes.

    Args:
        request: Which folder, how often, and whether to install the loaders that need an environment.

    Raises `ModelError`, and `SlipwayError` if files cannot be made cold.
    """
    folder = absolute_path(request.folder)
    settings = Settings.load()
    with in_use_by_path(folder, settings):
        return _compared(folder, request, settings)


def _compared(folder: Path, request: LoadingRequest, settings: Settings) -> Outcome[LoadingResult]:
    model = apply.look_at(folder)
    python = loaders_python(settings, install=request.install)
    disk = _disk_read_mb_s(folder)
    now = datetime.now(UTC)
    valid = timedelta(seconds=0 if request.fresh else FIGURES_VALID_S)
    inputs = {
        "files": [_state(path) for path in model.files],
        "runs": request.runs,
        "mount": str(mount_of(folder)),
        "host": platform.node(),
        "requirements": REQUIREMENTS if python else (),
    }
    bench = LoadTrial(WORKER, python)
    return run_stage(
        flow_recorder(),
        StageName.LOADING,
        subject=str(folder),
        inputs=inputs,
        result_type=LoadingResult,
        report=report,
        work=lambda: apply.compare_loaders(folder, bench, runs=request.runs, disk_read_mb_s=disk, now=now),
        still_good=lambda result: abs(now - result.at) < valid,
    )


def _state(path: Path) -> tuple[str, int, int]:
    """What identifies a file's content as long as it is not written to."""
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


def loaders_python(settings: Settings, *, install: bool) -> Path | None:
    """The Python of the libraries' environment, which `install` builds if needed; None without an environment.

    Raises what the environment stage raises, and `WrongUseError` if the libraries do not go together.
    """
    return tool_python(REQUIREMENTS, settings, name="the loaders", torch_backend="auto", install=install)


def _disk_read_mb_s(folder: Path) -> float | None:
    """What the disk reads at its best; loaders can be compared without it."""
    try:
        fio.program()
        return measure_disk.plain(DiskRequest(folder=folder)).result.figures.read_mb_s or None
    except (MissingToolError, CommandError, DiskFullError):
        return None
