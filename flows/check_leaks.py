"""Does a service leak memory? The sampler is kept running, and what it wrote is judged; nightly of every service."""

from __future__ import annotations

from functools import partial

from blocks.host.host import read_system
from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.every_service import run_name, worst_of_every_service
from blocks.prefect.flows import flow
from blocks.services.sampler import sample_service, stop_sampler
from tasks.core.progress import say
from tasks.core.release import ServiceFolder
from tasks.core.settings import Settings
from tasks.core.stage import Outcome, run_stage
from tasks.core.verdicts import StageName
from tasks.leaks import report
from tasks.leaks.apply import damage, judge_samples
from tasks.leaks.models import LeakRequest, LeakResult


@flow(name="check-leaks", flow_run_name=partial(run_name, "leaks"))
def check_leaks(name: str | None = None) -> Outcome[LeakResult] | None:
    """Judge the memory of a service's engine since it was started.

    Args:
        name: The service; every service of this host when empty.
    """
    if name is None:
        return worst_of_every_service(check_leaks)
    folder = ServiceFolder(Settings.load().services, name)
    state, release = folder.serving()
    if (why := damage(folder.samples)) is not None:
        say(StageName.LEAKS, f"{why}: the sampler is restarted, which repairs the file")
        stop_sampler(folder)
    sample_service(folder, state, release)
    request = LeakRequest(
        limit_bytes=release.spec.hardware.memory or read_system().memory_bytes,
        confirm_after_s=release.spec.checks.confirm_after_s,
    )
    return run_stage(
        flow_recorder(),
        StageName.LEAKS,
        subject=name,
        inputs={"release": release.id, **request.model_dump()},
        result_type=LeakResult,
        report=report,
        work=lambda: judge_samples(folder.samples, request),
    )
