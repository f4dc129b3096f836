"""Whether driver, CUDA, GPUs and packages of this host and environment go together."""

from __future__ import annotations

from prefect import flow

from blocks.environment_trial import EnvironmentTrial
from blocks.host import ThisHost
from flows.recording import Outcome, run_stage
from tasks.compatibility import report
from tasks.compatibility.models import CompatibilityRequest, CompatibilityResult
from tasks.compatibility.rules import load_tables
from tasks.compatibility.task import judge_compatibility, take_survey
from tasks.core.verdicts import StageName


@flow(name="verify-compatibility", flow_run_name="compatibility of {request.engine}")
def verify_compatibility(request: CompatibilityRequest) -> Outcome[CompatibilityResult]:
    """Survey this host, and judge what is to run on it by the rule table.

    A recorded verdict stands while the host, the request and the rules stay the same; the survey is made anew
    each time. Disks are in the result and not in what it rests on: what is free on them always changes.

    Args:
        request: the engine and the packages of its environment, and its Python where that stands already.
    """
    survey = take_survey(ThisHost(), request, EnvironmentTrial())
    return run_stage(
        StageName.COMPATIBILITY,
        subject=request.engine.value,
        inputs={
            "request": request.model_dump(mode="json"),
            "survey": survey.lasting(),
            "rules": load_tables().digest,
        },
        result_type=CompatibilityResult,
        report=report,
        work=lambda: judge_compatibility(request, survey),
        still_good=lambda _: True,
    ).as_state()
