"""How fast the disk is that models are staged on."""

from __future__ import annotations

import platform
from datetime import UTC, datetime, timedelta

from blocks.host.fio import measure
from blocks.host.host_load import ForeignLoad
from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.flows import flow
from tasks.core.files import file_lock, make_folder, mount_of
from tasks.core.given_files import absolute_path
from tasks.core.progress import say
from tasks.core.settings import Settings
from tasks.core.stage import Outcome, run_stage
from tasks.core.verdicts import StageName
from tasks.staging.disk import report
from tasks.staging.disk.models import DiskFigures, DiskRequest, DiskResult
from tasks.staging.disk.plan import FIGURES_VALID_S, judge


@flow(name="measure-disk", flow_run_name="disk of {request.folder}")
def measure_disk(request: DiskRequest) -> Outcome[DiskResult]:
    """Measure a disk with fio against the baselines, unless that was done in the last days.

    Args:
        request: Which disk, and whether an earlier figure will do.

    Raises `MissingToolError` if there is no fio.
    """
    folder = absolute_path(request.folder)
    make_folder(folder)
    mount = mount_of(folder)
    now = datetime.now(UTC)
    valid = timedelta(seconds=0 if request.fresh else FIGURES_VALID_S)
    lock = Settings.load().leases / f"disk-{mount.stat().st_dev}"
    load = ForeignLoad()

    def figures() -> DiskFigures:
        say(StageName.DISK, f"measuring {mount} with fio")
        return measure(folder, thorough=request.thorough)

    with file_lock(lock, wait=True, holder=f"the disk at {mount}"):
        return run_stage(
            flow_recorder(),
            StageName.DISK,
            subject=str(mount),
            inputs={"mount": str(mount), "host": platform.node()},
            result_type=DiskResult,
            report=report,
            work=lambda: judge(load.over(figures), str(mount), now),
            still_good=lambda result: (
                abs(now - result.at) < valid and (result.figures.thorough or not request.thorough)
            ),
            load=load,
        )
