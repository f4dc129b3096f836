"""Lock, build, check and prove an engine's own environment."""

from __future__ import annotations

import time
from typing import Any

from blocks.engine.torch_backend import decide_backend
from blocks.engine.trial import EnvironmentTrial
from blocks.host.host import ThisHost
from blocks.packages.inspect_environment import known_conflicts
from blocks.packages.managers import open_manager
from blocks.prefect.artifacts import flow_recorder
from blocks.prefect.asked_by_api import check_programs
from blocks.prefect.flows import flow, step
from tasks.core.allowed import programs_of_environment
from tasks.core.progress import say
from tasks.core.settings import Settings
from tasks.core.spec_kinds import EnvironmentManager
from tasks.core.stage import Outcome, run_stage
from tasks.core.verdicts import EnvironmentVerdict, StageName
from tasks.engines.catalogue import get_engine
from tasks.environment import plan, report
from tasks.environment.apply import PackageTool, build, lock_for, prove_built, still_good
from tasks.environment.models import EnvironmentRequest, EnvironmentResult, Locked, Refusal
from tasks.environment.proof import check


@flow(name="build-environment", flow_run_name="environment of {request.engine}")
def build_environment(request: EnvironmentRequest) -> Outcome[EnvironmentResult]:
    """Build the isolated environment in which an engine runs.

    Args:
        request: The engine, its Python version, and what else must be installed.
    """
    check_programs(programs_of_environment(request.environment, "request.environment"))
    tool, trial = open_manager(request.environment.manager), EnvironmentTrial()
    request = decide_backend(request, ThisHost())
    asked = plan.lock_request(get_engine(request.engine), request, tool)
    inputs = {"engine": request.engine, **asked.model_dump(mode="json")}
    if asked.manager is EnvironmentManager.SYSTEM:  # what is installed there decides, not what was asked for
        adopted = lock_for(request, tool, trial, Settings.load())
        inputs["packages"] = adopted.packages if isinstance(adopted, Locked) else {}
    return run_stage(
        flow_recorder(),
        StageName.ENVIRONMENT,
        subject=request.engine,
        inputs=inputs,
        result_type=EnvironmentResult,
        report=report,
        work=lambda: _work(request, tool, trial),
        still_good=lambda result: still_good(result, trial),
    )


def _work(request: EnvironmentRequest, tool: PackageTool, trial: EnvironmentTrial) -> EnvironmentResult:
    settings = Settings.load()
    start = time.monotonic()
    locked = step("lock-environment", lock_for)(request, tool, trial, settings)
    lock_s = time.monotonic() - start
    if isinstance(locked, Refusal):
        return EnvironmentResult(
            verdict=EnvironmentVerdict.CONFLICTING,
            reason=locked.reason,
            conflicts=plan.attribute(locked.conflicts, get_engine(request.engine), request.engine_version),
            chains=locked.chains,
            loosen=locked.loosen,
            python_instead=locked.python,
            remarks=locked.remarks,
            lock_s=lock_s,
        )
    for known in known_conflicts(locked.packages, None):
        say(StageName.ENVIRONMENT, f"known to fail: {known.reason} (what to do: {known.fix})")
    built = step("build-environment", build)(locked, tool, trial, settings)
    checked = step("check-environment", check)(built.python_path, tool, trial)
    proof = step("prove-environment", prove_built)(built, get_engine(request.engine), trial, settings)
    conflicts = (*checked.conflicts, *known_conflicts(checked.packages, proof))
    verdict, reason = plan.judge(conflicts, proof)
    found: dict[str, Any] = {
        "lock_path": locked.path,
        "lock_digest": locked.digest,
        "environment_path": built.path,
        **built.model_dump(include={"python_path", "python_version", "size_bytes", "build_s"}),
        **checked.model_dump(include={"packages", "dependencies"}),
        "conflicts": conflicts,
    }
    version = checked.packages.get(get_engine(request.engine).card.package)
    return EnvironmentResult(
        verdict=verdict, reason=reason, engine_version=version, proof=proof, lock_s=lock_s, **found
    )
