"""How a rollout is recorded, for all that ask for one: a deploy, `rollback`, `start` or `keep-running`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blocks.services.sampler import see_to_sampler
from tasks.core.release import ServiceFolder
from tasks.core.stage import Outcome, Recorder, run_stage
from tasks.core.verdicts import RolloutVerdict, StageName
from tasks.rollout import report
from tasks.rollout.models import RolloutResult


def run_rollout(
    recorder: Recorder,
    folder: ServiceFolder,
    inputs: Mapping[str, str],
    work: Callable[[], RolloutResult],
    *,
    still_good: Callable[[RolloutResult], bool] | None = None,
    by: str | None = None,
    began: float | None = None,
) -> Outcome[RolloutResult]:
    """Run the stage as `run_stage` does, then see that the serving release has a sampler."""
    outcome = run_stage(
        recorder,
        StageName.ROLLOUT,
        subject=folder.name,
        inputs=inputs,
        result_type=RolloutResult,
        report=report,
        work=work,
        still_good=still_good,
        by=by,
        began=began,
    )
    if outcome.verdict == RolloutVerdict.SERVING:
        see_to_sampler(folder)
    return outcome
