"""How fast the disk is that models are staged on."""

from __future__ import annotations

import platform
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from prefect import flow

from blocks.host.fio import measure
from blocks.host.host_load import ForeignLoad
from flows.recording import Outcome, run_stage
from tasks.core.files import file_lock, make_folder, mount_of
from tasks.core.given_files import absolute_path
from tasks.core.settings import Settings
from tasks.core.verdicts import StageName
from tasks.staging.apply import measure_disk as measure_and_judge
from tasks.staging.models import DiskRequest, DiskResult
from tasks.staging.plan import DISK_FIGURES_VALID_S
from tasks.staging.report import DiskReport


@flow(name="measure-disk", flow_run_name="disk of {request.folder}")
def measure_disk(request: DiskRequest) -> Outcome[DiskResult]:
    """Measure a disk with fio against the baselines, unless that was done in the last days.

    Args:
        request: Which disk, and whether an earlier figure will do.
    """
    return measured(request).as_state()


def measured(request: DiskRequest) -> Outcome[DiskResult]:
    """The same without a flow run. Raises `MissingToolError` where there is no fio."""
    folder = absolute_path(request.folder)
    make_folder(folder)
    mount = mount_of(folder)
    now = datetime.now(UTC)
    valid = timedelta(seconds=0 if request.fresh else DISK_FIGURES_VALID_S)
    lock = Settings.load().leases / f"disk-{mount.stat().st_dev}"
    load = ForeignLoad()
    with file_lock(lock, wait=True, holder=f"the disk at {mount}"):
        return run_stage(
            StageName.DISK,
            subject=str(mount),
            inputs={"mount": str(mount), "host": platform.node()},
            result_type=DiskResult,
            report=DiskReport(),
            work=lambda: load.over(
                lambda: measure_and_judge(partial(measure, thorough=request.thorough), folder, now)
            ),
            still_good=lambda result: (
                abs(now - result.at) < valid and (result.figures.thorough or not request.thorough)
            ),
            load=load,
        )


def figures_for(folder: Path) -> Outcome[DiskResult]:
    """Figures of the disk that `folder` is or will be on."""
    return measured(DiskRequest(folder=folder))
