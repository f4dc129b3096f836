"""Whether driver, CUDA, GPUs and packages of this host and environment go together."""

from __future__ import annotations

from pathlib import Path

from blocks.engine.trial import EnvironmentTrial
from blocks.expectations.fact_contract import FactContract
from blocks.host.host import ThisHost
from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.asked_by_api import check_programs, python_in
from blocks.prefect.flows import flow, step
from tasks.compatibility import report
from tasks.compatibility.apply import judge, take_survey
from tasks.compatibility.models import CompatibilityRequest, CompatibilityResult
from tasks.core.settings import Settings
from tasks.core.stage import Outcome, run_stage
from tasks.core.verdicts import StageName


@flow(name="verify-compatibility", flow_run_name="compatibility of {request.engine}")
def verify_compatibility(request: CompatibilityRequest) -> Outcome[CompatibilityResult]:
    """Survey this host, and judge with the tables of rules whether the engine can run on it.

    A recorded verdict is valid while the host, the request, the rules and the contract on them stay the same; the
    survey is made again each time. Disks are in the result and not in what it rests on: what is free on them
    always changes.

    Args:
        request: the engine and the packages of its environment, and its Python if that exists already.
    """
    if request.python_path is not None:
        check_programs([python_in(request.python_path, "request.python_path")])
    survey = step("survey-host", take_survey)(ThisHost(), request, EnvironmentTrial())
    contract = FactContract(Settings.load())
    return run_stage(
        flow_recorder(),
        StageName.COMPATIBILITY,
        subject=request.engine.value,
        inputs={
            "request": request.model_dump(mode="json"),
            "survey": survey.lasting(),
            "tables": contract.identity.model_dump(mode="json"),
        },
        result_type=CompatibilityResult,
        report=report,
        work=lambda: step("judge-compatibility", judge)(request, survey, contract),
        still_good=_has_page,
    )


def _has_page(result: CompatibilityResult) -> bool:
    """Whether the page that the artifact names is there."""
    return result.tables is not None and Path(result.tables.page).is_file()
